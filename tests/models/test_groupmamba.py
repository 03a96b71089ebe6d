"""GroupMamba's checkpoints, its two classifiers, its groups."""

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from timm.task import TokenDistillationTask

import visionssm  # noqa: F401
from visionssm.models import CheckpointError
from visionssm.models._builder import VisionModel
from visionssm.models.groupmamba import GroupMamba, GroupSS2D

DATA = Path(__file__).resolve().parent.parent / "data"
VARIANTS = ["groupmamba_tiny", "groupmamba_small", "groupmamba_base"]


def small(**kwargs):
    torch.manual_seed(0)
    args = dict(dims=(16, 32), depths=(1, 2), mlp_ratios=(2, 2), stem_dim=8, num_classes=10)
    return GroupMamba(**dict(args, **kwargs)).eval()


def custom_keys():
    return json.loads((DATA / "goldens" / "groupmamba_custom_a.json").read_text())["keys"]


def custom(**kwargs):
    args = dict(dims=(16, 32, 52, 64), depths=(1, 1, 2, 1), stem_dim=8, num_classes=10)
    return GroupMamba(**dict(args, **kwargs)).eval()


def published():
    """A state dict of the original's names, with values that tell entries apart."""
    generator = torch.Generator().manual_seed(0)
    return {k: torch.zeros(()) if not shape else torch.randn(shape, generator=generator) for k, shape in custom_keys()}


LAYOUTS = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3, "max_accuray_ema": 83.3},
    "model and model_ema": lambda s: {"model": {k: torch.zeros_like(v) for k, v in s.items()}, "model_ema": s},
    "state_dict": lambda s: {"state_dict": s},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(layout):
    source = published()
    loaded = VisionModel.checkpoint_filter_fn(LAYOUTS[layout](source), custom())
    theirs, ours = "block2.0.attn.mamba_g", "stages.1.blocks.0.mixer.groups."
    for g in range(4):
        assert torch.equal(loaded[f"{ours}in_proj.weight"][g], source[f"{theirs}{g + 1}.in_proj.weight"])
        assert torch.equal(loaded[f"{ours}conv.bias"][8 * g : 8 * g + 8], source[f"{theirs}{g + 1}.conv2d.bias"])
        assert torch.equal(loaded[f"{ours}ssm.dt_weight"][g], source[f"{theirs}{g + 1}.dt_projs_weight"][0])
    assert torch.equal(loaded["head.fc_dist.weight"], source["dist_head.weight"])


def test_a_missing_group_is_named():
    state = published()
    del state["block3.1.attn.mamba_g2.Ds"]
    with pytest.raises(CheckpointError, match=r"stages\.2\.blocks\.1\.mixer\.groups\.ssm\.D") as error:
        VisionModel.checkpoint_filter_fn(state, custom())
    assert "mamba_g1.Ds" in str(error.value)


def test_a_file_without_the_second_classifier_is_refused():
    state = {k: v for k, v in published().items() if not k.startswith("dist_head")}
    with pytest.raises(CheckpointError, match=r"head\.fc_dist\.weight"):
        VisionModel.checkpoint_filter_fn(state, custom())
    VisionModel.checkpoint_filter_fn(state, custom(distilled=False))


def test_classes_and_channels_are_adapted():
    source = timm.create_model("test_groupmamba").eval()
    model = timm.create_model(
        "test_groupmamba",
        pretrained=True,
        num_classes=5,
        in_chans=1,
        pretrained_cfg_overlay=dict(state_dict=source.state_dict()),
    ).eval()
    assert [fc.out_features for fc in model.get_classifier()] == [5, 5]
    assert torch.equal(model.stages[3].blocks[0].mixer.proj.weight, source.stages[3].blocks[0].mixer.proj.weight)
    gray = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(
        model.forward_features(gray), source.forward_features(gray.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("scan, routes", [("raster", 1), ("bidirectional", 2), ("cross+raster", 5)])
def test_needs_four_routes(scan, routes):
    message = f"GroupMamba scans 4 groups of channels along one route each, but scan={scan!r} has {routes} routes"
    with pytest.raises(ValueError, match=re.escape(message)):
        small(scan=scan)


def test_groups_are_scanned_along_their_routes():
    # each group alone is a mixer of one route
    torch.manual_seed(0)
    whole = GroupSS2D(24, d_state=3)
    for p in whole.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 5, 7, 24)
    y = whole(x)
    assert y.shape == (2, 5, 7, 4, 6)
    for g, route in enumerate(("raster", "vertical", "raster_flip", "vertical_flip")):
        part = GroupSS2D(6, d_state=3, scan=route)
        state = {
            k: v[6 * g : 6 * g + 6] if k.startswith("conv.") else v[g : g + 1] for k, v in whole.state_dict().items()
        }
        part.load_state_dict(state)
        torch.testing.assert_close(part(x[..., 6 * g : 6 * g + 6])[..., 0, :], y[..., g, :], atol=1e-5, rtol=1e-5)


def test_channels_must_fit_the_routes():
    with pytest.raises(ValueError, match="22 channels cannot be split into 4 groups"):
        GroupSS2D(22)


def test_scan_order_matters():
    x = torch.randn(1, 3, 64, 64)
    cross, snake = small(scan="cross"), small(scan="snake")
    with torch.no_grad():
        for name, weight in cross.named_parameters():
            if name.endswith("ssm.x_proj_weight"):
                weight.mul_(30)  # in fresh mixers little but the skip D reaches the output
        snake.load_state_dict(cross.state_dict())
        assert not torch.allclose(cross(x), snake(x))


def test_distilled_training_returns_both_logits():
    model = small()
    x = torch.randn(2, 3, 64, 64)
    model.train()
    assert model(x).shape == (2, 10)
    model.set_distilled_training()
    logits, logits_dist = model(x)
    assert logits.shape == logits_dist.shape == (2, 10) and not torch.equal(logits, logits_dist)
    model.eval()
    with torch.no_grad():
        token = model.forward_head(model.forward_features(x), pre_logits=True)
        fc, fc_dist = model.get_classifier()
        torch.testing.assert_close(model(x), (fc(token) + fc_dist(token)) / 2)
    model.train()
    model.set_distilled_training(False)
    assert model(x).shape == (2, 10)


def test_distillation_as_published():
    torch.manual_seed(0)
    student = timm.create_model("test_groupmamba", num_classes=6)
    teacher = timm.create_model("test_vmamba", num_classes=6)
    task = TokenDistillationTask(
        student, teacher, criterion=torch.nn.CrossEntropyLoss(), distill_type="hard", task_loss_weight=0.5
    )
    images, labels = torch.randn(3, 3, 64, 64), torch.tensor([0, 3, 5])
    out = task.train()(images, labels)
    out["loss"].backward()
    torch.testing.assert_close(out["loss"], 0.5 * out["task_loss"] + 0.5 * out["distill_loss"])
    assert all(fc.weight.grad.any() for fc in student.get_classifier())


def test_one_classifier():
    model = small(distilled=False)
    assert model.get_classifier() is model.head.fc and not any("dist" in k for k in model.state_dict())
    with pytest.raises(ValueError, match="distilled=True"):
        model.set_distilled_training()
    model.set_distilled_training(False)


def test_reset_replaces_both_classifiers():
    model = small()
    model.reset_classifier(3)
    assert [fc.out_features for fc in model.get_classifier()] == [3, 3]
    with pytest.raises(ValueError, match="global_pool must be one of"):
        model.reset_classifier(3, "catavgmax")


def test_features_are_normalised_but_for_the_last():
    model = small()
    with torch.no_grad():
        maps = model.forward_intermediates(3 * torch.randn(2, 3, 64, 64), intermediates_only=True)
    spreads = [m.std(dim=1, correction=0) for m in maps]
    assert (spreads[0] - 1).abs().max() < 0.01 < (spreads[1] - 1).abs().max()


def test_pruned_for_features_drops_what_the_class_token_needs():
    model = timm.create_model("test_groupmamba", features_only=True, out_indices=(0, 3))
    assert not any("head" in name for name, _ in model.named_parameters())
    sum(m.square().mean() for m in model(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_no_weight_decay_is_what_the_original_spared():
    spared = {k.split("groups.")[1] for k in small().no_weight_decay()}
    assert spared == {"ssm.D", "out_norm.weight", "out_norm.bias"}


def test_initial_values():
    model = timm.create_model("groupmamba_tiny", num_classes=0)
    mixer = model.stages[3].blocks[0].mixer
    assert mixer.skip_scale.item() == 1
    assert abs(mixer.groups.in_proj.weight.std() - 0.02) < 1e-3 and abs(mixer.proj.weight.std() - 0.02) < 1e-3
    for conv in (mixer.groups.conv, model.stages[2].downsample.conv):
        expected = (2 / (9 * conv.out_channels / conv.groups)) ** 0.5
        assert abs(conv.weight.std() / expected - 1) < 0.1 and not conv.bias.any()


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(mlp_ratios=(2,)), "one length, got 2, 2 and 1"),
        (dict(weight_init="jax"), "weight_init must be"),
        (dict(global_pool="catavgmax"), "global_pool must be"),
    ],
)
def test_wrong_choices(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)
