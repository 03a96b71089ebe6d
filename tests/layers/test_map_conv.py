"""Convolutions of maps with contiguous channels, which are matrix products where the map is small."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from visionssm.layers.map_conv import MapConv2d


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(2, 2), (3, 1), (4, 5), (9, 9)])
@pytest.mark.parametrize("stride, padding", [(2, 1), (1, 0), ((1, 2), (0, 1))])
def test_convolution_of_a_small_map_is_a_product(bias, size, stride, padding, monkeypatch):
    conv = MapConv2d(5, 70, (2, 1), stride=stride, padding=padding, bias=bias)
    x = torch.randn(1, *size, 5, requires_grad=True)
    products = []
    monkeypatch.setattr(F, "linear", lambda *args, linear=F.linear: products.append(1) or linear(*args))
    y = conv(x)
    expected = nn.Conv2d.forward(conv, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert bool(products) == (8 * y.shape[1] * y.shape[2] < 70)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(y)
    given = [x, *conv.parameters()]
    grads, others = (torch.autograd.grad(out, given, weights) for out in (y, expected))
    torch.testing.assert_close(grads, others, rtol=1e-4, atol=1e-4)


def test_convolution_says_what_is_too_small():
    with pytest.raises(RuntimeError, match="[Kk]ernel size"):
        MapConv2d(3, 100, 3)(torch.zeros(1, 2, 2, 3))


@torch.no_grad()
def test_product_counts_and_traces_as_the_convolution():
    conv = MapConv2d(5, 70, 3, padding=1)
    x = torch.randn(1, 2, 2, 5)
    with FlopCounterMode(display=False) as counter:
        y = conv(x)
    assert counter.get_total_flops() == 2 * 4 * 9 * 5 * 70
    assert torch.equal(torch.fx.symbolic_trace(conv)(x), y)
    exported = torch.export.export(conv, (x,)).module()
    torch.testing.assert_close(exported(x), y, rtol=1e-5, atol=1e-5)
    twice = torch.func.vmap(conv)(torch.stack([x, x]))
    torch.testing.assert_close(twice[1], y, rtol=1e-5, atol=1e-5)
