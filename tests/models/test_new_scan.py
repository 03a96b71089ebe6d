"""A new scan order, written in ten lines, used by every family that has a choice."""

import inspect

import pytest
import timm
import torch
import torch.nn.functional as F

import visionssm
from visionssm.scans import list_scans, num_routes, register_scan, registry


def takes_scan(name):
    classes = type(timm.create_model(name, device="meta")).__mro__
    return any("scan" in inspect.signature(c.__init__).parameters for c in classes)


FAMILIES = [name for name in visionssm.list_models("test_*") if takes_scan(name)]
EVERY_ORDER = [name.replace("<k>", "3") for name in list_scans()] + [
    "raster+vertical",
    "cross+window2_flip",
    "hilbert+hilbert_flip+spiral",
]


@pytest.fixture
def brick(monkeypatch):
    monkeypatch.setattr(registry, "_orders", dict(registry._orders))

    @register_scan("brick", routes=4)
    def brick(height, width):
        """Every second row shifted by half a row, forwards and backwards, and the same from the last row up."""
        rows = torch.arange(height * width).view(height, width).clone()
        for i in range(1, height, 2):
            rows[i] = rows[i].roll(width // 2)
        down, up = rows.flatten(), rows.flip(0).flatten()
        return torch.stack([down, down.flip(0), up, up.flip(0)])

    return "brick"


@pytest.mark.parametrize("name", FAMILIES)
def test_new_order_trains_one_step(name, brick):
    torch.manual_seed(0)
    published = timm.create_model(name, num_classes=4)
    torch.manual_seed(0)
    first = published.scan if isinstance(published.scan, str) else published.scan[0]
    order = f"{brick}[0]" if num_routes(first) == 1 else brick  # some families take one route only
    model = timm.create_model(name, num_classes=4, scan=order)
    images = torch.randn(4, *model.pretrained_cfg["input_size"])
    labels = torch.arange(4)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def loss():
        out = model(images)
        return sum(F.cross_entropy(o, labels) for o in (out if isinstance(out, tuple) else (out,)))

    before = loss()
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    optimizer.step()
    assert loss() < before
    with torch.no_grad():
        assert not torch.allclose(model.eval()(images), published.eval()(images)), "the order changes nothing"


@pytest.mark.parametrize("scan", EVERY_ORDER)
def test_every_order_in_vmamba(scan):
    model = timm.create_model("test_vmamba", num_classes=3, scan=scan)
    model(torch.randn(2, 3, 36, 52)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("scan", EVERY_ORDER)
def test_every_order_in_vmamba_tiny(scan):
    model = timm.create_model("vmamba_tiny_s1l8", scan=scan)
    model(torch.randn(1, 3, 64, 96)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
