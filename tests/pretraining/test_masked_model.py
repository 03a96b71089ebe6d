"""Backbones that see some cells of images."""

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.pretraining.masked_model import MaskedImageModel, _masked, _repeat

BACKBONES = ("test_vim", "test_mambareg", "test_vmamba", "test_msvmamba", "test_localvmamba")


def make(name="test_vim", **kwargs):
    torch.manual_seed(0)
    size = {"img_size": (64, 96)} if name in ("test_vim", "test_mambareg") else {}
    backbone = timm.create_model(name, num_classes=0, **size)
    return MaskedImageModel(backbone, decoder_width=32, **kwargs).eval()


def images(batch=2):
    return torch.randn(batch, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BACKBONES)
def test_hidden_pixels_are_not_seen(name):
    """They change nothing but the target; a batch with two masks gives what its images give alone."""
    model, x = make(name, mask_ratio=0.5), images()
    visible = model.draw(x, torch.Generator().manual_seed(0))
    assert not torch.equal(visible[0], visible[1]) and visible.sum() == visible.numel() // 2
    pixels = _repeat(visible, x.shape[2:]).unsqueeze(1)
    other = torch.where(pixels, x, 9.0)
    with torch.no_grad():
        loss, found, _ = model(x, visible)
        changed, same, _ = model(other, visible)
        torch.testing.assert_close(found, same, rtol=0, atol=0)
        assert found.shape == x.shape and changed != loss
        seen = torch.where(pixels, x + torch.randn(x.shape, generator=torch.Generator().manual_seed(2)), x)
        assert not torch.allclose(model(seen, visible)[1], found)
        single = torch.cat([model(x[i : i + 1], visible[i : i + 1])[1] for i in range(2)])
    torch.testing.assert_close(single, found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_everything_visible_is_the_ordinary_forward(name):
    model, x = make(name, mask_ratio=0.0), images()
    visible = model.draw(x)
    with torch.no_grad():
        maps = model.encode(x, visible)
        expected = model.backbone.forward_intermediates(x, norm=True, intermediates_only=True)
        assert model(x, visible)[0] == 0
    torch.testing.assert_close(maps[-1], expected[-1], rtol=1e-5, atol=1e-5)


def test_masks_are_aligned_over_stages():
    """Hidden cells are 0 in the maps of every stage of images that are not square; nothing stays hooked."""
    model, x = make("test_vmamba", mask_ratio=0.5), images()
    visible = model.draw(x)
    with torch.no_grad():
        maps = model.encode(x, visible)
        assert len({m.shape[2:] for m in maps}) == len(maps) > 2
        for m in maps:
            shown = _repeat(visible, m.shape[2:]).unsqueeze(1)
            assert (m * ~shown).abs().max() == 0 and (m * shown).abs().sum() > 0
        with _masked(model.backbone, visible):
            pass
        before = model.backbone.forward_features(x)
    assert not any(module._forward_hooks for module in model.backbone.modules())
    assert torch.equal(before, model.backbone.forward_features(x).detach())


@pytest.mark.parametrize("gaps", [True, False])
def test_gaps(gaps):
    """The state decays over hidden tokens or not; the images see a difference."""
    model, x = make(mask_ratio=0.5, gaps=gaps), images()
    visible = model.draw(x, torch.Generator().manual_seed(0))
    other = make(mask_ratio=0.5, gaps=not gaps)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert not torch.equal(model.encode(x, visible)[0], other.encode(x, visible)[0])


@pytest.mark.parametrize(("name", "fill"), [("test_vim", "toki"), ("test_vim", "token"), ("test_vmamba", "toki")])
def test_it_learns(name, fill):
    model, x = make(name, mask_ratio=0.5, fill=fill).train(), images(4)
    visible = model.draw(x, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        loss, _, _ = model(x, visible)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    lost = [n for n, p in model.named_parameters() if p.grad is None]
    assert not lost, lost
    assert model.fill is None or model.fill.transition.grad.abs().sum() > 0


def test_refusals():
    backbone = lambda name, **kwargs: timm.create_model(name, num_classes=0, **kwargs)  # noqa: E731
    for model, args, message in [
        (backbone("test_plainmamba"), {}, "batch norms"),
        (backbone("test_efficientvmamba"), {}, "batch norms"),
        (backbone("test_hydra"), {}, "whole maps"),
        (backbone("test_vim", pruning=((1, 0.5),)), {}, "pruning"),
        (backbone("test_vim", removed=["blocks.1"]), {}, "whole model"),
        (backbone("resnet10t"), {}, "no backbone of this package"),
        (backbone("test_vim"), {"cell": 24}, "multiple of the backbone's stride 16"),
        (backbone("test_vim"), {"mask_ratio": 1.0}, "below 1"),
        (backbone("test_vim"), {"fill": "mean"}, "fill"),
        (backbone("test_vmamba"), {"decoder_width": 1}, "decoder_width"),
    ]:
        with pytest.raises(ValueError, match=message):
            MaskedImageModel(model, **args)
    with pytest.raises(ValueError, match="multiples of the cell 16"):
        make().draw(torch.zeros(1, 3, 64, 40))
    with pytest.raises(ValueError, match="none visible"):
        make().draw(torch.zeros(1, 3, 16, 16))
