"""GrootV's checkpoints as its training writes them, and what is its own: the tree, the head."""

import json
from pathlib import Path

import pytest
import timm
import torch

import visionssm
from visionssm.models import CheckpointError
from visionssm.models.grootv import GrootV, edge_weights
from visionssm.ops import spanning_tree

DATA = Path(__file__).resolve().parent.parent / "data"
VARIANTS = [n for n in visionssm.list_models("grootv_*")]


def small(**kwargs) -> GrootV:
    torch.manual_seed(0)
    return GrootV(dims=(16, 32), depths=(1, 2), num_classes=10, **kwargs).eval()


def published(model):
    """The model's weights under the original's names and shapes."""
    out = {}
    for name, value in model.state_dict().items():
        for ours, theirs in (
            ("stem.norm1.", "patch_embed.norm1.1."),
            ("stem.norm2.", "patch_embed.norm2.1."),
            ("stem.", "patch_embed."),
            ("stages.1.downsample.conv.", "levels.0.downsample.conv."),
            ("stages.1.downsample.norm.", "levels.0.downsample.norm.1."),
            ("stages.", "levels."),
            (".mixer.ssm.x_proj_weight", ".TreeSSM.x_proj_weight"),
            (".mixer.ssm.dt_weight", ".TreeSSM.dt_projs_weight"),
            (".mixer.ssm.dt_bias", ".TreeSSM.dt_projs_bias"),
            (".mixer.ssm.A_log", ".TreeSSM.A_logs"),
            (".mixer.ssm.D", ".TreeSSM.Ds"),
            (".mixer.ssm.h_norm.", ".TreeSSM.h_norm."),
            (".mixer.conv.", ".TreeSSM.conv2d."),
            (".mixer.", ".TreeSSM."),
            (".scale1.gamma", ".gamma1"),
            (".scale2.gamma", ".gamma2"),
            ("head.conv.", "conv_head.0."),
            ("head.norm.", "conv_head.1.0."),
            ("head.fc.", "head."),
        ):
            name = name.replace(ours, theirs)
        if name.startswith("levels."):
            for norm in (".norm.", ".norm1.", ".norm2."):
                name = name if "downsample" in name else name.replace(norm, f"{norm}0.")
        if name.endswith("A_logs"):
            value = value[0]
        if name.endswith(".Ds"):
            value = value.flatten()
        out[name] = value
    return out


LAYOUTS = {
    "alone": lambda s: s,
    "model": lambda s: {"model": s, "optimizer": {}, "epoch": 3, "max_accuracy": 83.4, "amp": {}},
    "model and model_ema": lambda s: {
        "model": {k: torch.zeros_like(v) for k, v in s.items()},
        "model_ema": {f"module.{k}": v for k, v in s.items()},
        "ema_decay": 0.9999,
    },
    "norms without permutation": lambda s: {k.replace("norm1.1.", "norm1.0."): v for k, v in s.items()},
}


@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(layout, layer_scale):
    model = small(layer_scale=layer_scale)
    loaded = model.checkpoint_filter_fn(LAYOUTS[layout](published(model)), small(layer_scale=layer_scale))
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", VARIANTS)
def test_published_names_and_shapes(name):
    keys = json.loads((DATA / "keys" / f"{name}.json").read_text())["keys"]
    model = timm.create_model(name, device="meta")
    converted = model.checkpoint_filter_fn({k: torch.empty(shape, device="meta") for k, shape in keys}, model)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_another_variant_and_family_are_refused():
    keys = json.loads((DATA / "keys" / "grootv_small.json").read_text())["keys"]
    state = {k: torch.empty(shape, device="meta") for k, shape in keys}
    tiny = timm.create_model("grootv_tiny", device="meta")
    with pytest.raises(CheckpointError, match=r"stages\.2\.blocks\.9"):
        tiny.checkpoint_filter_fn(state, tiny)
    vmamba = timm.create_model("vmamba_tiny_s1l8", device="meta")
    with pytest.raises(CheckpointError, match="names are those of a GrootV file"):
        vmamba.checkpoint_filter_fn(state, vmamba)


def test_edges_between_like_pixels_are_in_the_tree():
    """A map of two halves: one edge of the tree, and no more, crosses the border."""
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(1, 4, 6, 2)
    x[:, :, :3, 0] = x[:, :, 3:, 1] = 1
    parent = spanning_tree(*edge_weights(x + 0.01 * torch.rand(x.shape, generator=g)))[0]
    left = torch.arange(24) % 6 < 3
    crossing = [v for v in range(1, 24) if left[v] != left[parent[v]]]
    assert len(crossing) == 1


def test_features_are_normalised_and_pruning_leaves_no_unused_weights():
    x = torch.randn(2, 3, 32, 48)
    model = timm.create_model("test_grootv", features_only=True)
    maps = model(x)
    for y in maps:
        torch.testing.assert_close(y.mean(1), torch.zeros_like(y.mean(1)), atol=1e-5, rtol=0)
    sum(y.square().sum() for y in maps).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_head_without_pooling_classifies_every_position():
    model = small(global_pool="")
    x = torch.randn(2, 3, 32, 48)
    assert model(x).shape == (2, 4, 6, 10)
    pooled = small()
    torch.testing.assert_close(model(x).mean((1, 2)), pooled(x))
    with pytest.raises(ValueError, match="global_pool must be one of"):
        small(global_pool="catavgmax")
