"""LocalMamba: published directions and layouts, files that are refused, rotary tables, scan options."""

import json
from pathlib import Path

import pytest
import timm
import torch
from parity import fill_state_dict
from timm.models._features_fx import create_feature_extractor, get_graph_node_names
from torch import nn

import visionssm
from visionssm.models import CheckpointError
from visionssm.models._builder import VisionModel
from visionssm.models.localmamba import LocalVim, LocalVMamba, RotaryTables, scan_names

DATA = Path(__file__).resolve().parent.parent / "data"
NAMES = {ours: theirs for theirs, ours in json.loads((DATA / "names.json").read_text()).items() if "local" in ours}
VIM = [name for name in NAMES if name.startswith("localvim")]


def record(name):
    return json.loads((DATA / "keys" / f"{NAMES[name]}.json").read_text())


def meta_weights(theirs):
    keys = json.loads((DATA / "keys" / f"{theirs}.json").read_text())["keys"]
    return {name: torch.empty(shape, device="meta") for name, shape in keys}


def golden(name):
    """A small recorded model's weights under the original's names, and ours of the same shapes."""
    case = json.loads((DATA / "goldens" / f"{name}.json").read_text())
    config = case["config"]
    scan = scan_names("\n".join(" ".join(block) for block in config["directions"]))
    if "dims" in config:
        model = LocalVMamba(num_classes=10, dims=config["dims"], depths=config["depths"], scan=scan)
    else:
        token = config.get("if_cls_token", False)
        model = LocalVim(
            img_size=64,
            num_classes=10,
            embed_dim=config["embed_dim"],
            depth=config["depth"],
            class_token=token,
            rope_size=0 if token else 64,
            global_pool="token" if token else "avg",
            scan=scan,
        )
    return fill_state_dict([(k, tuple(s)) for k, s in case["keys"]], case), model.eval()


@pytest.fixture(params=["local_vssm_custom_a", "local_vim_custom_a", "local_vim_custom_b_midcls"])
def published(request):
    return golden(request.param)


LAYOUTS = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 300, "arch": "local_vim_tiny"},
    "model": lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 1},
    "ema": lambda s: {"model": {k: torch.zeros_like(v) for k, v in s.items()}, "ema": s},
    "module.": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(published, layout):
    source, model = published
    plain = VisionModel.checkpoint_filter_fn(source, model)
    wrapped = VisionModel.checkpoint_filter_fn(LAYOUTS[layout](source), model)
    assert plain.keys() == wrapped.keys() == model.state_dict().keys()
    assert all(torch.equal(plain[k], wrapped[k]) for k in plain)
    again = VisionModel.checkpoint_filter_fn(plain, model)
    assert all(torch.equal(plain[k], again[k]) for k in plain)
    model.load_state_dict(plain, strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_directions_are_the_published_ones(name):
    model = timm.create_model(name, device="meta")
    scans = tuple(m.scan for m in model.modules() if hasattr(m, "ssm"))
    assert scans == scan_names("\n".join(" ".join(block) for block in record(name)["directions"]))


@pytest.mark.parametrize("name", ["localvim_tiny", "localvmamba_tiny"])
def test_authors_file(name, tmp_path):
    case = json.loads((DATA / "goldens" / f"{NAMES[name]}.json").read_text())
    source = fill_state_dict([(k, tuple(s)) for k, s in record(name)["keys"]], case)
    if name == "localvim_tiny":  # the authors' files hold the tables
        rope = RotaryTables(192, (14, 14))
        source |= {"rope.freqs_cos": rope.cos[0], "rope.freqs_sin": rope.sin[0]}
    torch.save({"state_dict": source, "epoch": 299}, tmp_path / "authors.ckpt")
    overlay = dict(file=str(tmp_path / "authors.ckpt"))
    loaded = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    expected = VisionModel.checkpoint_filter_fn(source, timm.create_model(name, device="meta"))
    assert all(torch.equal(v, expected[k]) for k, v in loaded.state_dict().items())
    other = timm.create_model(name, pretrained=True, num_classes=3, in_chans=1, pretrained_cfg_overlay=overlay)
    assert other.get_classifier().out_features == 3


def test_routes_keep_a_matrix_each():
    # on CPUs the original's four A_log share one memory, and loading leaves all equal to the last one
    source, model = golden("local_vim_custom_a")
    model.load_state_dict(VisionModel.checkpoint_filter_fn(source, model))
    for k, route in enumerate(model.blocks[0].mixer.ssm.A_log):
        assert torch.equal(route, source[f"layers.0.mixer.A_log_{k}"])
    assert not torch.equal(model.blocks[0].mixer.ssm.A_log[0], model.blocks[0].mixer.ssm.A_log[3])


class TestRefused:
    @pytest.mark.parametrize("name", VIM)
    def test_the_link_of_localvim_small(self, name):
        with pytest.raises(CheckpointError, match="load it as localvmamba_small"):
            VisionModel.checkpoint_filter_fn(meta_weights("local_vssm_small"), timm.create_model(name, device="meta"))

    @pytest.mark.parametrize(
        "name, block",
        [
            ("localvim_tiny", "layers.0.mixer."),
            ("localvmamba_tiny", "layers.0.blocks.0.op."),
        ],
    )
    def test_search_networks(self, name, block):
        state = meta_weights(NAMES[name]) | {f"{block}multi_scan.weights": torch.zeros(8, 1, 1, 1)}
        with pytest.raises(CheckpointError, match="network that searches scan directions"):
            VisionModel.checkpoint_filter_fn(state, timm.create_model(name, device="meta"))

    @pytest.mark.parametrize(
        "name, theirs, family",
        [
            ("localvim_tiny", "vim_tiny", "Vim"),
            ("localvmamba_tiny", "local_vim_tiny", "LocalVim"),
            ("localvmamba_tiny", "vanilla_vmamba_tiny", "VMamba"),
        ],
    )
    def test_other_families(self, name, theirs, family):
        with pytest.raises(CheckpointError, match=f"names are those of a {family} file"):
            VisionModel.checkpoint_filter_fn(meta_weights(theirs), timm.create_model(name, device="meta"))

    @pytest.mark.parametrize(
        "name, theirs",
        [
            ("localvim_tiny", "local_vim_tiny_middle_cls_token"),
            ("localvim_tiny_midcls", "local_vim_tiny"),
        ],
    )
    def test_with_and_without_class_token(self, name, theirs):
        with pytest.raises(CheckpointError, match="cls_token"):
            VisionModel.checkpoint_filter_fn(meta_weights(theirs), timm.create_model(name, device="meta"))

    def test_another_width(self):
        with pytest.raises(CheckpointError, match=r"patch_embed.proj.weight: file \(384, 3, 16, 16\)"):
            model = timm.create_model("localvim_tiny", device="meta")
            model.checkpoint_filter_fn(meta_weights("local_vim_small"), model)

    def test_another_patch_size(self):
        model = timm.create_model("localvim_tiny", patch_size=8, img_size=112, device="meta")
        with pytest.raises(CheckpointError, match="patch_embed.proj.weight: file"):
            VisionModel.checkpoint_filter_fn(meta_weights("local_vim_tiny"), model)

    @pytest.mark.parametrize("name", ["localvim_tiny", "localvmamba_tiny"])
    def test_another_number_of_routes(self, name):
        model = timm.create_model(name, scan="bidirectional", device="meta")
        with pytest.raises(CheckpointError, match="trained with 4 routes, but scan='bidirectional' has 2"):
            VisionModel.checkpoint_filter_fn(meta_weights(NAMES[name]), model)

    def test_other_rotary_tables(self):
        source, model = golden("local_vim_custom_a")
        source |= {"rope.freqs_cos": model.rope.cos[0], "rope.freqs_sin": model.rope.sin[0] + 0.01}
        with pytest.raises(CheckpointError, match="rope.freqs_sin of the checkpoint differs"):
            VisionModel.checkpoint_filter_fn(source, model)

    def test_rotary_tables_for_a_model_that_does_not_rotate(self):
        model = timm.create_model("localvim_tiny", rope_size=0, device="meta")
        with pytest.raises(CheckpointError, match="with rotary embedding, but the model has none"):
            VisionModel.checkpoint_filter_fn(meta_weights("local_vim_tiny"), model)

    def test_routes_of_different_shapes(self):
        source, model = golden("local_vim_custom_a")
        source["layers.1.mixer.A_log_2"] = torch.zeros(64, 8)
        with pytest.raises(CheckpointError, match=r"blocks\.1\.mixer\.A_log_2 \(64, 8\)"):
            VisionModel.checkpoint_filter_fn(source, model)

    def test_a_missing_route(self):
        source, model = golden("local_vim_custom_a")
        del source["layers.1.mixer.dt_proj_2.bias"]
        with pytest.raises(CheckpointError, match=r"blocks\.1\.mixer\.ssm\.dt_bias"):
            VisionModel.checkpoint_filter_fn(source, model)

    def test_a_position_embedding_of_no_square(self):
        source, model = golden("local_vim_custom_a")
        source["pos_embed"] = torch.zeros(1, 15, 32)
        with pytest.raises(CheckpointError, match="15 entries, which is no square grid"):
            VisionModel.checkpoint_filter_fn(source, model)


class TestRotaryTables:
    def test_values(self):
        rope = RotaryTables(8, (3, 2))
        for row in range(3):
            for column in range(2):
                angles = []
                for t in (row / 3 * 14, column / 2 * 14):
                    angles += [t, t, t * 10000**-0.5, t * 10000**-0.5]
                expected = torch.tensor(angles)
                torch.testing.assert_close(rope.sin[0, row * 2 + column], expected.sin(), atol=1e-6, rtol=0)
                torch.testing.assert_close(rope.cos[0, row * 2 + column], expected.cos(), atol=1e-6, rtol=0)

    def test_are_not_stored(self):
        assert not [k for k in timm.create_model("test_localvim").state_dict() if "rope" in k]

    def test_stay_in_float32(self):
        model = timm.create_model("test_localvim", dtype=torch.bfloat16)
        assert model.rope.sin.dtype == torch.float32

    def test_tables_of_another_grid_are_dropped_from_files(self):
        source, model = golden("local_vim_custom_a")
        plain = VisionModel.checkpoint_filter_fn(source, model)
        out = VisionModel.checkpoint_filter_fn(source | {"rope.freqs_cos": torch.zeros(9, 32)}, model)
        assert out.keys() == plain.keys()

    def test_need_four_divisors(self):
        with pytest.raises(ValueError, match="multiple of 4 channels, got 6"):
            RotaryTables(6, (2, 2))

    def test_a_class_token_is_not_rotated(self):
        with pytest.raises(ValueError, match="class_token=True needs rope_size=0"):
            LocalVim(depth=1, scan="raster", class_token=True)


def test_three_ways_to_another_size():
    torch.manual_seed(0)
    small = timm.create_model("test_localvim").eval()
    resized = timm.create_model("test_localvim").eval()
    resized.load_state_dict(small.state_dict())
    resized.set_input_size((96, 64))
    built = timm.create_model("test_localvim", img_size=96).eval()
    built.load_state_dict(VisionModel.checkpoint_filter_fn(small.state_dict(), built))
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        expected = small(x)
        torch.testing.assert_close(built(x), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(resized(x[..., :64]), small(x[..., :64]), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(
            timm.create_model("test_localvim", img_size=96, rope_size=96).rope.sin[:, :16], small.rope.sin
        )


def test_middle_class_token_at_another_size():
    source, model = golden("local_vim_custom_b_midcls")
    model.load_state_dict(VisionModel.checkpoint_filter_fn(source, model))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 70, 120)).shape == (1, 10)


@pytest.mark.parametrize(
    "kwargs, size",
    [
        (dict(class_token=True, rope_size=0, global_pool="token"), 64),
        (dict(class_token=True, rope_size=0, global_pool="avg"), 80),
        ({}, 80),  # tables and position embedding are resampled
        (dict(feature_stream=False), 64),
    ],
)
def test_compilers(kwargs, size):
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = timm.create_model("test_localvim", **kwargs).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
        traced = create_feature_extractor(model, {get_graph_node_names(model)[1][-1]: "out"})
        assert torch.equal(traced(x)["out"], expected)


def test_columns_are_put_back_where_they_were():
    # the original un-permutes column-wise scans wrongly on rectangles
    torch.manual_seed(0)
    rows, columns = (
        LocalVMamba(dims=(8,), depths=(1,), d_state=4, scan=scan).stages[0].blocks[0].mixer
        for scan in ("raster+raster_flip", "vertical+vertical_flip")
    )
    columns.load_state_dict(rows.state_dict() | {"conv.weight": rows.conv.weight.transpose(2, 3)})
    x = torch.randn(2, 5, 7, 8)
    with torch.no_grad():
        torch.testing.assert_close(columns(x), rows(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize("name", ["test_localvim", "test_localvmamba"])
class TestScan:
    def test_one_order_for_all_blocks(self, name):
        model = timm.create_model(name, scan="raster+window3_flip")
        assert {m.ssm.D.shape[0] for m in model.modules() if hasattr(m, "ssm")} == {2}
        model(torch.randn(2, 3, 40, 72)).square().mean().backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_wrong_number_of_orders(self, name):
        with pytest.raises(ValueError, match="one name for all blocks or a list of"):
            timm.create_model(name, scan=["raster", "vertical"])

    def test_unknown_order_offers_the_nearest(self, name):
        with pytest.raises(ValueError, match="did you mean 'vertical'"):
            timm.create_model(name, scan="raster+vertikal")


def test_bare_outputs_add_up_to_the_stream():
    torch.manual_seed(0)
    args = dict(rope_size=0, drop_path_rate=0.0)
    stream = timm.create_model("test_localvim", **args).eval()
    bare = timm.create_model("test_localvim", feature_stream=False, **args).eval()
    bare.load_state_dict(stream.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        streams, outputs = (m.forward_intermediates(x, intermediates_only=True) for m in (stream, bare))
    for i in range(1, len(streams)):
        torch.testing.assert_close(streams[i], streams[i - 1] + outputs[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name, exempt",
    [
        ("test_localvim", {"D", "dt_bias", "conv_bias", "pos_embed"}),
        ("test_localvmamba", {"D"}),
    ],
)
def test_no_weight_decay(name, exempt):
    names = timm.create_model(name).no_weight_decay()
    assert {n.rsplit(".", 1)[-1] for n in names} == exempt


@pytest.mark.parametrize("name", ["test_localvim", "test_localvmamba"])
def test_initial_step_sizes(name):
    # the original's LocalVim overwrites them
    model = timm.create_model(name)
    for mixer in (m for m in model.modules() if hasattr(m, "ssm")):
        steps = nn.functional.softplus(mixer.ssm.dt_bias)
        assert 0.9e-3 < steps.min() and steps.max() < 0.11


def test_weights_that_were_never_released():
    assert {n.split(".")[0] for n in visionssm.list_models("local*", pretrained=True)} == {
        "localvim_tiny",
        "localvim_tiny_midcls",
        "localvmamba_small",
    }


def test_state_dicts_from_before_blocks_were_shared():
    model = timm.create_model("test_localvmamba")
    former = {k.replace(".norm1.", ".norm."): v for k, v in model.state_dict().items()}
    again = timm.create_model("test_localvmamba")
    again.load_state_dict(former)
    assert torch.equal(again.stages[0].blocks[0].norm1.weight, model.stages[0].blocks[0].norm1.weight)
    assert again.checkpoint_filter_fn(former, again).keys() == model.state_dict().keys()
