"""Trees, tree scan and wavefront scan on a GPU give what they give on a CPU."""

import pytest
import torch

from visionssm.ops import spanning_tree, tree_scan, wavefront_scan


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (14, 14), (56, 56)])
@pytest.mark.parametrize("levels", [None, 3])
def test_trees(height, width, levels):
    down, right = torch.rand(4, height - 1, width), torch.rand(4, height, width - 1)
    if levels:  # many weights are equal
        down, right = (down * levels).floor(), (right * levels).floor()
    assert torch.equal(spanning_tree(down.cuda(), right.cuda()).cpu(), spanning_tree(down, right))


def both(function, tensors):
    """Output and gradients on the CPU in float64, and on the GPU in float32."""
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        leaves = [t.to(device, dtype).requires_grad_() for t in tensors]
        y = function(*leaves)
        results.append([t.double().cpu() for t in (y, *torch.autograd.grad(y.square().sum(), leaves))])
    return results


def test_tree_scan():
    parent = spanning_tree(torch.rand(2, 27, 28), torch.rand(2, 28, 27))
    expected, actual = both(
        lambda x, decay: tree_scan(x, decay, parent.to(x.device)), (torch.randn(2, 784, 24), torch.rand(2, 784, 24))
    )
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


@pytest.mark.parametrize("backend", ["triton", "portable"])
@pytest.mark.parametrize(("H", "W"), [(1, 5), (28, 20), (56, 56)])
def test_wavefront_scan(H, W, backend):
    def scan(*tensors):
        return wavefront_scan(*tensors, backend=backend if tensors[0].is_cuda else None)

    steps, rates = (torch.rand(2, H, W, 24) for _ in range(2)), (-torch.rand(24, 16) for _ in range(2))
    maps = (torch.randn(2, H, W, 16) for _ in range(3))
    expected, actual = both(scan, (torch.randn(2, H, W, 24), *steps, *rates, *maps, torch.ones(24)))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4 * e.abs().max().item())
