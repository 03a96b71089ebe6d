"""PlainMamba's checkpoints, its position embedding, and how its scan reads its parameters."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

import visionssm  # noqa: F401
from visionssm.models import CheckpointError
from visionssm.models._builder import VisionModel
from visionssm.models.plainmamba import DirectionalMixer, PlainMamba
from visionssm.ops import selective_scan
from visionssm.scans import direction_table, scan_table

DATA = Path(__file__).resolve().parent.parent / "data"
VARIANTS = ["plainmamba_l1", "plainmamba_l2", "plainmamba_l3"]


def small(**kwargs):
    torch.manual_seed(0)
    args = dict(img_size=64, embed_dim=32, depth=3, d_state=4, num_classes=10)
    return PlainMamba(**dict(args, **kwargs)).eval()


def custom():
    return PlainMamba(img_size=64, embed_dim=32, depth=3, num_classes=10).eval()


def published():
    """A state dict of the original's names, with values that tell entries apart."""
    keys = json.loads((DATA / "goldens" / "plainmamba_custom_a.json").read_text())["keys"]
    generator = torch.Generator().manual_seed(0)
    return {k: torch.zeros(()) if not shape else torch.randn(shape, generator=generator) for k, shape in keys}


LAYOUTS = {
    "mmcv": lambda s: {"meta": {"epoch": 300}, "state_dict": s, "optimizer": {"state": {}}},
    "bare": lambda s: s,
    "module.": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
    "with EMA copies": lambda s: {
        "state_dict": s | {"ema_" + k.replace(".", "_"): torch.zeros_like(v) for k, v in s.items()}
    },
    "without backbone.": lambda s: {k.removeprefix("backbone."): v for k, v in s.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(layout):
    source = published()
    loaded = VisionModel.checkpoint_filter_fn(LAYOUTS[layout](source), custom())
    for ours, theirs in {
        "pos_embed": "backbone.pos_embed",
        "patch_embed.convs.0.bn.running_var": "backbone.patch_embed.convs.1.running_var",
        "blocks.0.conv.conv.weight": "backbone.layers.0.dw.0.weight",
        "blocks.2.mixer.direction_B": "backbone.layers.2.mamba.direction_Bs",
        "norm.weight": "backbone.ln1.weight",
        "head.bias": "head.fc.bias",
    }.items():
        assert torch.equal(loaded[ours], source[theirs])


def test_another_variant_is_refused_with_a_difference():
    keys = json.loads((DATA / "keys" / "plainmamba_l2.json").read_text())["keys"]
    state = {k: torch.empty(shape, device="meta") for k, shape in keys}
    with pytest.raises(CheckpointError, match="not one of plainmamba_l1") as error:
        VisionModel.checkpoint_filter_fn(state, timm.create_model("plainmamba_l1", device="meta"))
    assert "blocks.0.conv.conv.weight" in str(error.value)


def test_a_segmentation_file_is_refused():
    state = {k: v for k, v in published().items() if not k.startswith("head")}
    state |= {"backbone.norm_layer1.weight": torch.ones(32), "decode_head.conv_seg.bias": torch.ones(150)}
    with pytest.raises(CheckpointError, match="decode_head.conv_seg.bias"):
        VisionModel.checkpoint_filter_fn(state, custom())


def test_classes_channels_and_size_are_adapted():
    source = timm.create_model("test_plainmamba").eval()
    model = timm.create_model(
        "test_plainmamba",
        pretrained=True,
        num_classes=5,
        in_chans=1,
        img_size=(80, 48),
        pretrained_cfg_overlay=dict(state_dict=source.state_dict()),
    ).eval()
    assert model.pos_embed.shape == (1, 15, 48) and model.head.out_features == 5
    gray = torch.randn(2, 1, 80, 48)
    # resampled once and for all, or at run time
    torch.testing.assert_close(
        model.forward_features(gray), source.forward_features(gray.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4
    )


def test_any_size_and_aspect():
    model = small()
    with torch.no_grad():
        tokens, grid = model.embed(torch.randn(1, 3, 33, 100))
    assert grid[:2] == (3, 7) and tokens.shape == (1, 21, 32)


def test_set_input_size_keeps_the_result():
    model = small()
    x = torch.randn(1, 3, 96, 32)
    with torch.no_grad():
        expected = model(x)
        model.set_input_size((96, 32))
        assert model.pos_embed.shape == (1, 12, 32)
        torch.testing.assert_close(model(x), expected)


def random_mixer(scan, scan_index):
    torch.manual_seed(0)
    mixer = DirectionalMixer(16, d_state=3, scan=scan, scan_index=scan_index)
    for name, p in mixer.named_parameters():
        torch.nn.init.normal_(p, std=0.1 if name == "A_log" else 0.4)
    return mixer


def by_hand(mixer, u, height, width):
    """Every route as a scan of a sequence that was put in order before, then put back."""
    order, codes = scan_table(mixer.scan, height, width), direction_table(mixer.scan, height, width)
    delta, b, c = mixer.x_proj(u).split(mixer.splits, dim=-1)
    delta = mixer.dt_proj(delta) + mixer.dt_proj.bias
    out = torch.zeros_like(u)
    for route, moves in zip(order.long(), codes.long(), strict=True):
        here = route if mixer.scan_index == "token" else torch.arange(len(route))
        read = (route >= 0)[:, None]  # other steps read a token of zeros
        y = selective_scan(
            u[:, route] * read,
            torch.where(read, delta[:, here], 2 * mixer.dt_proj.bias),
            -mixer.A_log.exp(),
            b[:, here] + mixer.direction_B[moves],
            c[:, here],
            mixer.D,
            backend="reference",
        )
        out = out.index_add(1, route.clamp(min=0), y * read)
    return out


@pytest.mark.parametrize(
    "scan, scan_index",
    [
        ("snake", "step"),
        ("snake", "token"),
        ("cross", "step"),
        ("hilbert", "token"),
        ("skip2", "token"),
        ("window3", "token"),
    ],
)
def test_where_the_parameters_of_a_step_come_from(scan, scan_index):
    mixer = random_mixer(scan, scan_index)
    u = torch.randn(2, 35, 32)
    with torch.no_grad():
        torch.testing.assert_close(mixer.ssm(u, 5, 7), by_hand(mixer, u, 5, 7), atol=1e-4, rtol=1e-4)


def test_step_and_token_agree_on_raster_only():
    u = torch.randn(2, 35, 32)
    with torch.no_grad():
        results = {
            scan: [random_mixer(scan, index).ssm(u, 5, 7) for index in ("step", "token")]
            for scan in ("raster", "snake")
        }
    torch.testing.assert_close(*results["raster"])
    assert not torch.allclose(*results["snake"], atol=1e-2)


@pytest.mark.parametrize(
    "scan, expected",
    [("snake", "step"), ("spiral", "step"), ("window3", "token"), ("skip2", "token"), ("snake+atrous2", "token")],
)
def test_default_index(scan, expected):
    model = small(scan=scan)
    assert {block.mixer.scan_index for block in model.blocks} == {expected}
    assert torch.isfinite(model(torch.randn(1, 3, 70, 50))).all()


def test_step_index_needs_a_permutation():
    with pytest.raises(ValueError, match=r"scan_index='step' needs .* 'window3'"):
        small(scan="window3", scan_index="step")
    assert small(scan="snake", scan_index="token").blocks[0].mixer.scan_index == "token"


def test_routes_share_the_parameters():
    assert small(scan="raster").state_dict().keys() == small(scan="snake+raster").state_dict().keys()
    shapes = [[p.shape for p in small(scan=scan).parameters()] for scan in ("raster", "snake+raster")]
    assert shapes[0] == shapes[1]


def test_initial_step_sizes():
    # the bias counts twice; the original's classifier sets it to zero
    bias = small().blocks[1].mixer.dt_proj.bias
    steps = F.softplus(2 * bias)
    assert 0.9e-3 < steps.min() < 1e-2 < steps.max() < 0.101
    assert not small(weight_init="published").blocks[1].mixer.dt_proj.bias.any()


def test_initial_head_and_tables():
    model = timm.create_model("plainmamba_l1")
    assert abs(model.head.weight.std() - 0.01) < 1e-3 and not model.head.bias.any()
    assert abs(model.pos_embed.std() - 0.02) < 1e-3
    assert abs(model.blocks[5].mixer.in_proj.weight.std() - 0.02) < 1e-3


def test_no_weight_decay_is_what_the_original_spared():
    spared = small().no_weight_decay()
    assert "pos_embed" in spared
    assert {k.rsplit(".", 1)[-1] for k in spared} == {"pos_embed", "A_log", "D", "direction_B"}


def test_convolution_only_in_its_blocks():
    model = small(conv_blocks=(1,))
    assert {n.split(".")[1] for n, _ in model.named_parameters() if ".conv.bn." in n} == {"1"}


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(conv_blocks=(3,)), "from 0 to 2, got"),
        (dict(patch_size=15), "patch_size must be even"),
        (dict(weight_init="jax"), "weight_init must be"),
        (dict(scan_index="row"), "scan_index must be"),
        (dict(scan="snak"), "did you mean 'snake'"),
        (dict(global_pool="token"), "global_pool must be"),
    ],
)
def test_wrong_choices(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)
