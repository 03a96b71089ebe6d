"""Vim's checkpoints in every published layout, what is refused, its position embedding, class token and scan option."""

import argparse
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath

import visionssm
from visionssm.layers import BidirectionalMixer, resample_pos_embed
from visionssm.models import CheckpointError
from visionssm.models._builder import VisionModel
from visionssm.models.vim import Vim

DATA = Path(__file__).resolve().parent.parent / "data"
VARIANTS = visionssm.list_models("vim_*")
STACKED = {
    "conv_weight": ("conv1d.weight", "conv1d_b.weight"),
    "conv_bias": ("conv1d.bias", "conv1d_b.bias"),
    "ssm.x_proj_weight": ("x_proj.weight", "x_proj_b.weight"),
    "ssm.dt_weight": ("dt_proj.weight", "dt_proj_b.weight"),
    "ssm.dt_bias": ("dt_proj.bias", "dt_proj_b.bias"),
    "ssm.A_log": ("A_log", "A_b_log"),
    "ssm.D": ("D", "D_b"),
}


def small(**kwargs):
    torch.manual_seed(0)
    return Vim(**dict(dict(img_size=64, embed_dim=16, depth=2, d_state=4, num_classes=10), **kwargs)).eval()


def image(height=64, width=64, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def published(model):
    """The model's weights as the original writes them."""
    out = {}
    for name, value in model.state_dict().items():
        name = re.sub(r"^norm\.", "norm_f.", re.sub(r"^blocks\.", "layers.", name))
        prefix, _, rest = name.partition(".mixer.")
        if rest in STACKED:
            value = value.unsqueeze(2) if rest == "conv_weight" else value
            for theirs, part in zip(STACKED[rest], value, strict=True):
                out[f"{prefix}.mixer.{theirs}"] = part
        else:
            out[name] = value
    return out


def recorded(variant):
    keys = json.loads((DATA / "keys" / f"{variant}.json").read_text())["keys"]
    return {k: torch.empty(shape, device="meta") for k, shape in keys}


def same(loaded, model):
    expected = model.state_dict()
    return loaded.keys() == expected.keys() and all(torch.equal(loaded[k], v) for k, v in expected.items())


LAYOUTS = {
    "state dict": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 299, "scaler": {}},
    "model and model_ema": lambda s: {"model": {k: torch.zeros_like(v) for k, v in s.items()}, "model_ema": s},
    "module.": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(layout):
    model = small()
    assert same(VisionModel.checkpoint_filter_fn(LAYOUTS[layout](published(model)), small(weight_init="skip")), model)


@pytest.mark.parametrize("name", VARIANTS)
def test_weights_have_a_place(name):
    cfg = timm.models.get_pretrained_cfg(name)
    assert cfg.hf_hub_id.startswith("hustvl/Vim-") and cfg.hf_hub_filename.endswith(".pth")
    assert ("_ft_" in cfg.hf_hub_filename) == name.endswith("_stride8")


def test_authors_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vim")
    path = tmp_path / "authors.pth"
    args = argparse.Namespace(lr=1e-3, model="vim_tiny_patch16_224_bimambav2")
    torch.save({"model": published(model), "optimizer": {"state": {}}, "epoch": 299, "args": args}, path)
    overlay = dict(pretrained_cfg_overlay=dict(file=str(path)))
    assert same(timm.create_model("test_vim", pretrained=True, **overlay).state_dict(), model)
    other = timm.create_model("test_vim", pretrained=True, num_classes=3, in_chans=1, **overlay)
    assert other.head.weight.shape[0] == 3 and other.patch_embed.proj.weight.shape[1] == 1
    assert torch.equal(other.blocks[3].mixer.ssm.D, model.blocks[3].mixer.ssm.D)


def test_weights_of_stride_8_are_refused_by_a_model_of_stride_16():
    with pytest.raises(CheckpointError, match=r"Vim with stride 8.*27 x 27.*with the ending '_stride8'"):
        VisionModel.checkpoint_filter_fn(recorded("vim_tiny_stride8"), timm.create_model("vim_tiny", device="meta"))


def test_weights_of_stride_16_start_a_model_of_stride_8(caplog):
    # as the published fine-tuning does
    source = small(img_size=224)
    model = small(img_size=224, stride=8)
    loaded = VisionModel.checkpoint_filter_fn(published(source), model)
    expected = resample_pos_embed(source.pos_embed, (14, 14), (27, 27), count=1)
    torch.testing.assert_close(loaded["pos_embed"], expected.detach())
    assert "14 x 14 to 27 x 27" in caplog.text


@pytest.mark.parametrize(
    "class_token, message",
    [
        (True, "before February 2024, with rotary embedding and the class token first"),
        (False, "before February 2024, without class token"),
    ],
)
def test_files_from_before_the_middle_class_token_are_refused(class_token, message):
    state = published(small(img_size=224))
    state |= {f"rope.freqs_{kind}": torch.zeros(196, 16) for kind in ("cos", "sin")}
    if not class_token:
        del state["cls_token"]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    with pytest.raises(CheckpointError, match=message):
        VisionModel.checkpoint_filter_fn({"model": state}, small(img_size=224))


def test_another_variant_is_refused_with_a_difference():
    with pytest.raises(CheckpointError, match=r"not one of vim_tiny(.|\n)*cls_token: file \(1, 1, 384\)"):
        VisionModel.checkpoint_filter_fn(recorded("vim_small"), timm.create_model("vim_tiny", device="meta"))


def test_a_missing_entry_is_named_even_if_the_head_is_replaced():
    state = published(timm.create_model("test_vim"))
    del state["layers.1.mixer.D_b"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mixer\.ssm\.D"):
        timm.create_model("test_vim", pretrained=True, num_classes=5, pretrained_cfg_overlay=dict(state_dict=state))


def test_position_embedding_of_an_unknown_grid_is_refused():
    state = small(img_size=(64, 96)).state_dict()
    with pytest.raises(CheckpointError, match=r"25 entries, which is no square grid.*set_input_size"):
        VisionModel.checkpoint_filter_fn(state, small())


def test_as_many_patches_in_another_shape_are_said(caplog):
    state = published(small(img_size=64))
    VisionModel.checkpoint_filter_fn(state, small(img_size=64))
    assert not caplog.text
    VisionModel.checkpoint_filter_fn(state, small(img_size=(32, 128)))
    assert "taken as one of 2 x 8 patches; if it is one of 4 x 4" in caplog.text


def test_weights_of_another_number_of_routes():
    with pytest.raises(CheckpointError, match=r"trained with 2 routes, but scan='cross' has 4"):
        VisionModel.checkpoint_filter_fn(published(small()), small(scan="cross"))


@pytest.mark.parametrize("size", [(64, 96), (49, 131), (16, 16)])
@pytest.mark.parametrize("stride", [16, 8])
def test_one_resampling_at_run_time_at_load_and_for_good(size, stride):
    model, x = small(stride=stride), image(*size)
    with torch.no_grad():
        expected = model(x)
        built = small(stride=stride, img_size=size)
        built.load_state_dict(VisionModel.checkpoint_filter_fn(published(model), built))
        torch.testing.assert_close(built(x), expected)
        model.set_input_size(size)
        torch.testing.assert_close(model(x), expected)
    assert model.grid_size == built.grid_size == ((size[0] - 16) // stride + 1, (size[1] - 16) // stride + 1)
    assert model.pos_embed.shape[1] == model.grid_size[0] * model.grid_size[1] + 1


def test_resampling_keeps_the_entry_of_the_class_token():
    table = torch.randn(1, 4 * 6 + 1, 8)
    new = resample_pos_embed(table, (4, 6), (5, 3), count=1)
    assert new.shape == (1, 16, 8) and torch.equal(new[:, 7], table[:, 12])
    # a constant grid stays constant whatever the class token's entry is
    table[:] = 1
    table[:, 12] = 100
    new = resample_pos_embed(table, (4, 6), (5, 3), count=1)
    torch.testing.assert_close(torch.cat([new[:, :7], new[:, 8:]], 1), torch.ones(1, 15, 8))


def test_a_saved_model_remembers_its_size(tmp_path):
    model = timm.create_model("test_vim", num_classes=3).eval()
    model.set_input_size((48, 80))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again.grid_size == (3, 5)
    with torch.no_grad():
        assert torch.equal(again(image(48, 80)), model(image(48, 80)))


@pytest.mark.parametrize("grid", [(4, 4), (7, 7), (3, 5), (1, 1)])
def test_the_backward_route_is_the_reversed_sequence(grid):
    # with an odd number of patches the class token is not at the same step of both routes
    mixer = BidirectionalMixer(16, "bidirectional", extra_tokens=(1, "middle"))
    forward, backward = mixer.order(*grid, torch.device("cpu"))
    assert forward.tolist() == list(range(grid[0] * grid[1] + 1))
    assert backward.tolist() == forward.tolist()[::-1]


def test_other_orders_read_the_class_token_in_the_middle():
    table = BidirectionalMixer(16, "cross", extra_tokens=(1, "middle")).order(4, 6, torch.device("cpu"))
    assert (table[:, 12] == 12).all() and (table.sort(1).values == torch.arange(25)).all()


@pytest.mark.parametrize(
    "scan, routes",
    [("raster", 1), ("bidirectional", 2), ("raster+vertical", 2), ("cross", 4), ("window3+window3_flip", 2)],
)
def test_scan_sizes_the_parameters(scan, routes):
    model = small(scan=scan)
    assert {b.mixer.ssm.D.shape[0] for b in model.blocks} == {routes}
    model(image(64, 80)).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_scan_order_matters():
    cross, snake = small(scan="cross"), small(scan="snake")
    snake.load_state_dict(cross.state_dict())
    with torch.no_grad():
        assert not torch.allclose(cross(image()), snake(image()))


def test_pools():
    model, x = small(), image()
    with torch.no_grad():
        tokens = model.forward_features(x)
        assert torch.equal(model.forward_head(tokens, pre_logits=True), tokens[:, 8])
        model.reset_classifier(10, "avg")
        expected = torch.cat([tokens[:, :8], tokens[:, 9:]], 1).mean(1)
        torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), expected)


def test_intermediates_with_class_token_and_norm():
    model, x = small(depth=3), image(64, 96)
    with torch.no_grad():
        final, levels = model.forward_intermediates(x, return_prefix_tokens=True, norm=True)
        patches, token = levels[-1]
        torch.testing.assert_close(token[:, 0], final[:, 12])
        torch.testing.assert_close(patches.flatten(2).transpose(1, 2), torch.cat([final[:, :12], final[:, 13:]], 1))
        rows = model.forward_intermediates(x, norm=True, output_fmt="NLC", intermediates_only=True)
        torch.testing.assert_close(rows[-1], patches.flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match="NCHW"):
        model.forward_intermediates(x, output_fmt="NHWC")


def test_features_of_the_stream_or_of_the_mixers():
    stream, bare = small(depth=3), small(depth=3, feature_stream=False)
    with torch.no_grad():
        of_stream = stream.forward_intermediates(image(), intermediates_only=True)
        of_mixers = bare.forward_intermediates(image(), intermediates_only=True)
    for i in (1, 2):
        torch.testing.assert_close(of_stream[i] - of_stream[i - 1], of_mixers[i], atol=1e-5, rtol=1e-4)


def test_the_stream_is_float32_whatever_the_blocks_compute_in():
    seen = []
    model = small(dtype=torch.bfloat16)
    model.blocks[1].register_forward_hook(lambda module, args, out: seen.extend([args[0].dtype, out.dtype]))
    with torch.no_grad():
        model(image().bfloat16())
    model = small()
    model.blocks[1].register_forward_hook(lambda module, args, out: seen.extend([args[0].dtype, out.dtype]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(image())
    assert seen == [torch.float32] * 4


def test_double_precision():
    with torch.no_grad():
        double = small().double()(image().double())
        torch.testing.assert_close(double.float(), small()(image()), atol=1e-5, rtol=1e-4)


def test_initialisation():
    model = small(embed_dim=64, depth=4)
    for block in model.blocks:
        mixer = block.mixer
        step = torch.nn.functional.softplus(mixer.ssm.dt_bias)
        assert (step > 9e-4).all() and (step < 0.11).all()  # both directions, unlike the original
        torch.testing.assert_close(mixer.ssm.A_log.exp(), torch.arange(1.0, 5.0).expand_as(mixer.ssm.A_log))
        assert (mixer.ssm.D == 1).all()
        bound = 128**-0.5 / 2  # PyTorch's bound over sqrt(depth)
        assert 0.9 * bound < mixer.out_proj.weight.abs().max() <= bound
    assert 0.015 < model.pos_embed.std() < 0.025 and (model.head.bias == 0).all()


def test_drop_path_grows_linearly_from_zero():
    model = small(depth=5, drop_path_rate=0.2)
    rates = [b.drop_path.drop_prob if isinstance(b.drop_path, DropPath) else 0.0 for b in model.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_weight_decay_as_in_the_original_training():
    model = small()
    spared = model.no_weight_decay()
    names = {n for n, p in model.named_parameters() if p.ndim >= 2 and n not in spared}
    kinds = {n.split("mixer.")[-1] for n in names}
    assert kinds == {
        "patch_embed.proj.weight",
        "head.weight",
        "in_proj.weight",
        "conv_weight",
        "ssm.x_proj_weight",
        "ssm.dt_weight",
        "ssm.A_log",
        "out_proj.weight",
    }


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(global_pool="map"), "global_pool must be one of '', 'avg', 'max', 'avgmax', 'token'"),
        (dict(weight_init="jax"), "weight_init must be"),
        (dict(stride=17), "stride must be from 1 to the patch size 16"),
        (dict(img_size=(64, 15)), "an image of 64 x 15 is smaller than a patch of 16 x 16"),
        (dict(scan="bidirectionnal"), "bidirectional"),
    ],
)
def test_wrong_choices(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)
