"""Models without some of their parts, and the search for those that matter least."""

import pytest
import timm
import torch
from torch import nn

from tests.families import PICO
from visionssm.compression.shedding import Shedding, shed, without
from visionssm.layers import RemovedScan, SelectiveSSM
from visionssm.models import CheckpointError, removable
from visionssm.models.vim import Vim
from visionssm.scans import scan_table


def image(name, batch=1):
    size = timm.models.get_pretrained_cfg(name).input_size
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(1))


def make(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **kwargs).eval()


def small():
    torch.manual_seed(0)
    return Vim(img_size=32, embed_dim=16, depth=4, d_state=2, num_classes=5)


def data():
    torch.manual_seed(2)
    return [(torch.randn(2, 3, 32, 32), torch.tensor([i, 4 - i])) for i in range(2)]


@pytest.mark.parametrize("name", PICO)
def test_every_family_loses_a_block(name):
    whole, x = make(name), image(name)
    blocks = removable(whole, "block")
    with torch.no_grad():
        expected = whole(x)
        for path in blocks[-1:]:
            try:
                with without(whole, [path]):
                    found = whole(x)
            except ValueError as error:
                assert "at least one must stay" in str(error)
                continue
            assert found.shape == expected.shape and not torch.equal(found, expected)


@pytest.mark.parametrize(
    ("name", "removed"),
    [
        ("test_vim", ["blocks.0", "blocks.2.mixer.ssm"]),  # block 0 names what a file is
        ("test_vmamba", ["stages.0.blocks.0.mixer", "stages.1.blocks.0.mlp", "stages.2.blocks.0.mixer.ssm"]),
    ],
)
def test_files_of_models_without_parts(name, removed, tmp_path):
    """Removed at construction equals removed live; a full file and a pruned one load, and strictly."""
    whole, x = make(name), image(name)
    path = tmp_path / "weights.pt"

    def load(state_dict, **kwargs):
        torch.save(state_dict, path)
        return make(name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **kwargs)

    full = whole.state_dict()
    pruned = load(full, removed=removed)
    rest = pruned.state_dict()
    with torch.no_grad():
        with without(whole, removed):
            live = whole(x)
        assert torch.equal(pruned(x), live) and not torch.equal(live, whole(x))
        assert torch.equal(load(rest, removed=removed)(x), live)
    assert pruned.removed == tuple(removed)
    assert rest.keys() < full.keys() and all(torch.equal(value, full[key]) for key, value in rest.items())
    with pytest.raises(CheckpointError):
        load(rest)
    with pytest.raises(CheckpointError, match="missing"):
        load({key: value for key, value in rest.items() if "in_proj" not in key}, removed=removed)


def test_removing_is_silencing():
    """A block goes like one whose branches add nothing; every parameter that is left has a gradient."""
    model, x = make("test_vim"), image("test_vim")
    with torch.no_grad(), without(model, ["blocks.1"]):
        expected = model(x)
    silent = make("test_vim")
    nn.init.zeros_(silent.blocks[1].mixer.out_proj.weight)
    with torch.no_grad():
        torch.testing.assert_close(silent(x), expected, atol=0, rtol=0)
    model = make("test_vmamba", removed=["stages.0.blocks.0.mixer"])
    model(image("test_vmamba")).sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_intermediates_of_a_removed_block():
    model, x = make("test_vim", removed=["blocks.1"]), image("test_vim")
    streams = model.forward_intermediates(x, intermediates_only=True)
    assert torch.equal(streams[0], streams[1]) and not torch.equal(streams[1], streams[2])
    hidden = make("test_vim", removed=["blocks.1"], feature_stream=False).forward_intermediates(
        x, intermediates_only=True
    )
    assert not hidden[1].any() and hidden[2].any()
    features = timm.create_model("test_vim", features_only=True, removed=["blocks.1"])(x)
    assert [f.shape for f in features] == [f.shape for f in timm.create_model("test_vim", features_only=True)(x)]


@pytest.mark.parametrize("scan", ["bidirectional", "cross"])
@pytest.mark.parametrize("by_step", [False, True])
def test_removed_scan_passes_its_input(scan, by_step):
    """Whatever the layout: with D = 1, no step and one state, a scan is its own input."""
    order = scan_table(scan, 3, 4, torch.device("cpu"))
    order = torch.cat([order, torch.full_like(order[:, :1], -1)], 1)
    routes, steps = order.shape
    torch.manual_seed(0)
    ssm = SelectiveSSM(5, routes, 1, 1, shared_input=not by_step)
    nn.init.zeros_(ssm.x_proj_weight)
    u = torch.randn(2, steps, routes, 5) if by_step else torch.randn(2, 12, 5)
    args = dict(by_step=True, num_tokens=12) if by_step else {}
    for out in ("sum", "route"):
        expected = ssm(u, order, out=out, **args)
        torch.testing.assert_close(RemovedScan(routes, not by_step)(u, order, out=out, **args), expected)


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        (["blocks.9"], "did you mean"),
        (["blocks.1", "blocks.1"], "twice"),
        (["blocks.1", "blocks.1.mixer.ssm"], "part of 'blocks.1'"),
        ([f"blocks.{i}" for i in range(4)], "at least one"),
        (["head"], "no part 'head'"),
    ],
)
def test_refusals(removed, message):
    with pytest.raises(ValueError, match=message):
        make("test_vim", removed=removed)


def test_text_is_no_sequence_of_paths():
    with pytest.raises(TypeError, match="sequence"):
        make("test_vim", removed="blocks.1")


@pytest.mark.parametrize("metric", ["loss", "top1", "kl"])
def test_search(metric):
    model, seen = small(), []
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = shed(model, data(), 2, metric=metric, on_step=lambda now: seen.append(now.removed))
    assert seen == [found.removed[:1], found.removed] and model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [len(step.candidates) for step in found.steps] == [4, 3]
    assert all(step.value == min(step.candidates.values()) for step in found.steps)
    assert found == shed(model, data(), 2, metric=metric, start=Shedding(metric, found.whole, found.steps[:1]))
    assert metric != "kl" or found.whole == 0.0


def test_search_refuses():
    model = small()
    for args, message in [
        (dict(steps=4), "1 to 3"),
        (dict(steps=1, metric="f1"), "metric"),
        (dict(steps=1, kind="row"), "kind"),
        (dict(steps=1, candidates=["blocks.8"]), "no block"),
    ]:
        with pytest.raises(ValueError, match=message):
            shed(model, data(), **args)
    with pytest.raises(ValueError, match="empty"):
        shed(model, [], 1)
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(RuntimeError, match="step 1"):
        shed(model, data(), 1)
    assert removable(model, "block") == [f"blocks.{i}" for i in range(4)]


@pytest.mark.parametrize("name", ["test_vim", "test_vmamba"])
def test_removed_routes(name, tmp_path):
    """A mixer without a route gives what the others give; full and pruned files load, and say what is missing."""
    whole, x = make(name), image(name)
    path = next(p for p in removable(whole, "route") if p.endswith(".routes.1"))
    mixer = whole.get_submodule(path.removesuffix(".ssm.routes.1"))
    with torch.no_grad():
        before = whole(x)
        with without(whole, [path]):
            live = whole(x)
        assert torch.equal(whole(x), before) and not torch.equal(live, before)
        # a route whose C and D are 0 gives nothing either
        silent = make(name)
        ssm = silent.get_submodule(path.removesuffix(".routes.1"))
        ssm.D[1] = 0
        ssm.x_proj_weight[1, -ssm.splits[2] :] = 0
        torch.testing.assert_close(silent(x), live)
    full = whole.state_dict()
    file = tmp_path / "weights.pt"

    def load(content, **kwargs):
        torch.save(content, file)
        return make(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **kwargs)

    pruned = load(full, removed=[path])
    rest = pruned.state_dict()
    assert rest.keys() == full.keys()
    assert len(rest[f"{path.removesuffix('.routes.1')}.D"]) == mixer.ssm.routes - 1
    with torch.no_grad():
        assert torch.equal(pruned(x), live)
        again = load({"state_dict": rest, "removed": [path]})
        assert again.removed == (path,) and torch.equal(again(x), live)
    with pytest.raises(CheckpointError):
        load(rest)
    with pytest.raises(ValueError, match="all routes"):
        make(name, removed=[p for p in removable(whole, "route") if p.startswith(path[:-1])])
    with pytest.raises(ValueError, match="part of"):
        make(name, removed=[path, path.removesuffix(".routes.1")])
