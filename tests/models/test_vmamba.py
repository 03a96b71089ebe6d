"""VMamba's checkpoints in every layout that was ever published, and its scan option."""

import json
from pathlib import Path

import pytest
import timm
import torch

import visionssm
from visionssm.models import CheckpointError
from visionssm.models._builder import VisionModel
from visionssm.models.vmamba import VMamba

DATA = Path(__file__).resolve().parent.parent / "data"
VARIANTS = [n for n in visionssm.list_models("*vmamba*") if (DATA / "keys" / f"{n}.json").exists()]


def small(**kwargs):
    torch.manual_seed(0)
    return VMamba(dims=(16, 32), depths=(1, 2), num_classes=10, **kwargs).eval()


def published(model):
    """The model's weights as the original's current code writes them."""
    routes = model.stages[0].blocks[0].mixer.ssm.routes
    merging = hasattr(model.stages[1].downsample, "reduction")
    out = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (
            ("stem.conv.", "patch_embed.0."),
            ("stem.norm.", "patch_embed.2."),
            ("stem.conv1.", "patch_embed.0."),
            ("stem.norm1.", "patch_embed.2."),
            ("stem.conv2.", "patch_embed.5."),
            ("stem.norm2.", "patch_embed.7."),
            ("stages.1.downsample.reduction.", "layers.0.downsample.reduction."),
            ("stages.1.downsample.conv.", "layers.0.downsample.1."),
            ("stages.1.downsample.norm.", f"layers.0.downsample.{'norm' if merging else 3}."),
            ("stages.", "layers."),
            (".norm1.", ".norm."),
            (".mixer.ssm.x_proj_weight", ".op.x_proj_weight"),
            (".mixer.ssm.dt_weight", ".op.dt_projs_weight"),
            (".mixer.ssm.dt_bias", ".op.dt_projs_bias"),
            (".mixer.ssm.A_log", ".op.A_logs"),
            (".mixer.ssm.D", ".op.Ds"),
            (".mixer.conv.", ".op.conv2d."),
            (".mixer.", ".op."),
            ("head.fc.", "classifier.head."),
        ):
            name = name.replace(ours, theirs)
        if name.startswith("norm."):
            name = "classifier." + name
        if name.endswith("A_logs"):
            value = value.reshape(routes * value.shape[1], -1)
        if name.endswith(".Ds"):
            value = value.flatten()
        out[name] = value
    return out


def old_names(state):
    """As the earliest code wrote them."""
    out = {}
    for name, value in state.items():
        for new, old in (
            (".op.", ".self_attention."),
            ("classifier.norm.", "norm."),
            ("classifier.head.", "head."),
            ("patch_embed.0.", "patch_embed.proj."),
            ("patch_embed.2.", "patch_embed.norm."),
        ):
            name = name.replace(new, old)
        if ".blocks." in name:
            name = name.replace(".norm.", ".ln_1.")
        out[name] = value
    return out


def one_file(state, biases=False):
    """As the version of one file writes them: grouped projections, and numbers for a merging's layers."""
    out = {}
    for name, value in state.items():
        # its blocks of the first generation keep the stacked parameters
        names = () if "layers.0.downsample.reduction.weight" in state else ("x_proj_weight", "dt_projs_weight")
        for theirs in (*names, *(("dt_projs_bias",) if biases else ())):
            if name.endswith(theirs):
                name, value = ".".join(name.rsplit("_", 1)), value.flatten(0, 1)
        for old, new in ((".downsample.norm.", ".downsample.1."), (".downsample.reduction.", ".downsample.2.")):
            name = name.replace(old, new)
        out[name] = value
    return out


LAYOUTS = {
    "current names": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3, "max_accuracy": 82.6},
    "model and model_ema": lambda s: {"model": {k: torch.zeros_like(v) for k, v in s.items()}, "model_ema": s},
    "state_dict": lambda s: {"state_dict": s, "meta": {"epoch": 3}},
    "module.": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "old names": lambda s: {"model": old_names(s)},
    "one file": one_file,
    "one file, grouped biases": lambda s: one_file(s, biases=True),
    "1 x 1 convolutions": lambda s: {
        k: v[:, :, None, None] if k.endswith(("proj.weight", "fc1.weight", "fc2.weight")) else v for k, v in s.items()
    },
}


GENERATIONS = {
    "second": {},
    "gated": dict(gated=True, conv_bias=True),
    "first": dict(gated=True, conv_bias=True, d_state=4, mlp_ratio=0.0, stem="patch", downsample="merge"),
}


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(layout, generation):
    arguments = GENERATIONS[generation]
    model = small(**arguments)
    loaded = VisionModel.checkpoint_filter_fn(LAYOUTS[layout](published(model)), small(**arguments))
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "change, refused",
    [
        # what options that no published weights have add to a file
        (lambda s: {**s, "pos_embed": torch.zeros(1, 16, 8, 8)}, r"not in the model \(1\):\s+pos_embed"),
        (lambda s: {k: v for k, v in s.items() if "patch_embed.2" not in k}, r"missing .* \(2\):\s+stem.norm1"),
        (lambda s: {k: v[:-1] if k.endswith("A_logs") else v for k, v in s.items()}, r"of another shape"),
    ],
)
def test_options_without_published_weights_are_refused_by_name(change, refused):
    with pytest.raises(CheckpointError, match=refused):
        VisionModel.checkpoint_filter_fn(change(one_file(published(small()))), small())


def test_another_variant_is_refused_with_a_difference():
    keys = json.loads((DATA / "keys" / "vmamba_small_s1l20.json").read_text())["keys"]
    state = {k: torch.empty(shape, device="meta") for k, shape in keys}
    with pytest.raises(CheckpointError, match=r"not one of vmamba_tiny_s1l8") as error:
        VisionModel.checkpoint_filter_fn(state, timm.create_model("vmamba_tiny_s1l8", device="meta"))
    assert "stages.2.blocks.8." in str(error.value) and "and 208 more" in str(error.value)


def test_a_missing_entry_is_named_even_if_the_head_is_replaced():
    # timm loads loosely when the number of classes differs; the filter must not
    state = published(timm.create_model("test_vmamba"))
    del state["layers.0.blocks.0.op.Ds"]
    with pytest.raises(CheckpointError, match=r"stages\.0\.blocks\.0\.mixer\.ssm\.D"):
        timm.create_model("test_vmamba", pretrained=True, num_classes=5, pretrained_cfg_overlay=dict(state_dict=state))


def test_weights_of_another_number_of_routes():
    state = small(scan="raster").state_dict()
    with pytest.raises(CheckpointError, match=r"trained with 1 routes, but scan='cross' has 4"):
        VisionModel.checkpoint_filter_fn(state, small())


@pytest.mark.parametrize("scan, routes", [("raster", 1), ("raster+vertical", 2), ("cross", 4)])
def test_scan_sizes_the_parameters(scan, routes):
    model = small(scan=scan)
    assert {m.ssm.D.shape[0] for m in model.modules() if hasattr(m, "ssm")} == {routes}
    logits = model(torch.randn(2, 3, 40, 56))
    logits.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_scan_order_matters():
    x = torch.randn(1, 3, 64, 64)
    cross, snake = small(scan="cross"), small(scan="snake")
    with torch.no_grad():
        for mixer in (m for m in cross.modules() if hasattr(m, "ssm")):
            mixer.out_proj.weight.mul_(50)  # fresh mixers hardly reach the logits
        snake.load_state_dict(cross.state_dict())
        assert not torch.allclose(cross(x), snake(x))


def test_unknown_scan_offers_the_nearest():
    with pytest.raises(ValueError, match="cross"):
        small(scan="croos")


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(stem="cnov"), "stem must be one of conv, patch"),
        (dict(downsample="pool"), "downsample must be one of conv, merge"),
        (dict(weight_init="jax"), "weight_init must be"),
    ],
)
def test_wrong_choices(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


def test_dims_and_depths_of_different_length():
    with pytest.raises(ValueError, match="one length, got 3 and 2"):
        VMamba(dims=(16, 32, 64), depths=(1, 1))


def test_no_weight_decay_is_what_the_original_spared():
    model = small()
    spared = model.no_weight_decay()
    assert "stages.0.blocks.0.mixer.ssm.D" in spared
    assert not any(n.endswith(("A_log", "dt_bias", "dt_weight", "x_proj_weight")) for n in spared)


def test_autocast_scans_in_low_precision_and_merges_in_float32():
    model = small()
    seen = {}
    mixer = model.stages[0].blocks[0].mixer
    mixer.ssm.register_forward_hook(lambda m, args, out: seen.update(given=args[0].dtype, out=out.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 3, 32, 32))
    assert seen == dict(given=torch.bfloat16, out=torch.float32)


@pytest.mark.parametrize("places", [(0, 1), (0, 2), (1, 3)])
def test_grouped_projections_and_other_places_of_the_downsampling(places):
    """As the version of one file writes them: routes and outputs of the projections share an axis."""
    model = small()
    source = {}
    for name, value in published(model).items():
        for theirs, grouped in (("x_proj_weight", "x_proj.weight"), ("dt_projs_weight", "dt_projs.weight")):
            if name.endswith(theirs):
                name, value = name.replace(theirs, grouped), value.flatten(0, 1)
        if name.endswith("dt_projs_bias"):
            name, value = name.replace("dt_projs_bias", "dt_projs.bias"), value.flatten()
        for old, new in zip((1, 3), places, strict=True):
            if f".downsample.{old}." in name:
                name = name.replace(f".downsample.{old}.", f".downsample.{new}.")
                break
        source[name] = value
    other = small()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(VMamba.checkpoint_filter_fn(source, other))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(other(x), model(x))
