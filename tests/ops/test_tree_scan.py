"""Spanning trees against Kruskal's algorithm, and the scan over them against its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops import spanning_tree, tree_scan
from visionssm.ops.tree_scan.doubling import spanning_tree_doubling, tree_scan_doubling
from visionssm.ops.tree_scan.reference import spanning_tree_reference


def make_tree(seed, b, height, width, levels=None):
    """Parents of random trees; with few `levels` many weights are equal."""
    g = torch.Generator().manual_seed(seed)
    down, right = torch.rand(b, height - 1, width, generator=g), torch.rand(b, height, width - 1, generator=g)
    if levels:
        down, right = (down * levels).floor(), (right * levels).floor()
    return down, right


def make_inputs(seed=0, b=2, height=3, width=4, d=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    shape = b, height * width, d
    x = torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)
    decay = torch.rand(shape, generator=g, dtype=torch.float64).to(dtype)
    return x, decay, spanning_tree(*make_tree(seed, b, height, width))


def run(x, decay, parent, backend):
    """Output and gradients of a random weighting of it."""
    leaves = [x.detach().clone().requires_grad_(), decay.detach().clone().requires_grad_()]
    y = tree_scan(*leaves, parent, backend=backend)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves, materialize_grads=True)]


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        error = (a.double() - e.double()).abs().max().item()
        assert error <= tolerance * max(1.0, e.double().abs().max().item())


sizes = dict(seed=st.integers(0, 2**20), b=st.integers(1, 3), height=st.integers(1, 7), width=st.integers(1, 7))


@settings(max_examples=60, deadline=None)
@given(**sizes, levels=st.sampled_from([None, 1, 2, 5]))
def test_tree_is_kruskals_also_among_equal_weights(seed, b, height, width, levels):
    down, right = make_tree(seed, b, height, width, levels)
    expected = spanning_tree_reference(down, right)
    assert torch.equal(spanning_tree(down, right), expected)
    assert torch.equal(spanning_tree_doubling(down, right), expected)


def test_large_trees_agree():
    down, right = make_tree(0, 2, 31, 40)
    assert torch.equal(spanning_tree(down, right), spanning_tree_doubling(down, right))


@settings(max_examples=60, deadline=None)
@given(**sizes, d=st.sampled_from([1, 2, 5]))
def test_portable_equals_reference_in_float64(**case):
    inputs = make_inputs(**case)
    expected = run(*inputs, "reference")
    assert_close(run(*inputs, "portable"), expected, 1e-11)
    assert_close([tree_scan_doubling(*inputs)], expected[:1], 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype):
    x, decay, parent = make_inputs(1, height=5, width=7, dtype=dtype)
    exact = run(x.double(), decay.double(), parent, "reference")
    tolerance = 2e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for backend in ("portable", "reference"):
        assert_close(run(x, decay, parent, backend), [t.to(dtype) for t in exact], tolerance)


def test_definition_by_paths():
    x, decay, parent = make_inputs(2)
    y = tree_scan(x, decay, parent)
    for image in range(2):
        ancestors = []
        for i in range(12):
            path = [i]
            while parent[image, path[-1]] >= 0:
                path.append(int(parent[image, path[-1]]))
            ancestors.append(path)
        for i in range(12):
            total = torch.zeros(3, dtype=x.dtype)
            for j in range(12):
                between = set(ancestors[i]) ^ set(ancestors[j])  # each edge named by its lower end
                total += x[image, j] * torch.stack([decay[image, v] for v in between] or [torch.ones(3)]).prod(0)
            torch.testing.assert_close(y[image, i], total)


def test_a_forest_is_scanned_tree_by_tree():
    x, decay, parent = make_inputs(3, b=1, height=1, width=6)
    parent[:] = torch.tensor([1, -1, 1, 4, -1, 4])
    halves = [
        tree_scan(t, a, torch.tensor([[1, -1, 1]])) for t, a in zip(x.split(3, 1), decay.split(3, 1), strict=True)
    ]
    torch.testing.assert_close(tree_scan(x, decay, parent), torch.cat(halves, 1))


def test_non_contiguous_inputs():
    x, decay, parent = make_inputs(4)
    strided = [t.mT.contiguous().mT for t in (x, decay)]
    assert_close(run(*strided, parent, "portable"), run(x, decay, parent, "portable"), 0.0)


def test_gradcheck():
    x, decay, parent = make_inputs(5, b=1, height=3, width=3, d=2)
    leaves = [x.requires_grad_(), decay.requires_grad_()]
    assert torch.autograd.gradcheck(lambda *t: tree_scan(*t, parent), leaves)


# --- torch.library ----------------------------------------------------------------------------------------------------


class Gather(torch.nn.Module):
    def forward(self, down, right, x, decay):
        return tree_scan(x, decay, spanning_tree(down, right))


def test_opcheck():
    x, decay, parent = make_inputs(6, dtype=torch.float32)
    torch.library.opcheck(torch.ops.visionssm.spanning_tree.default, make_tree(6, 2, 3, 4))
    torch.library.opcheck(torch.ops.visionssm.tree_scan.default, (x.requires_grad_(), decay.requires_grad_(), parent))


def test_compile_export_and_fx():
    x, decay, _ = make_inputs(7, dtype=torch.float32)
    inputs = (*make_tree(7, 2, 3, 4), x, decay)
    expected = Gather()(*inputs)
    torch.compiler.reset()
    leaves = (*inputs[:2], x.clone().requires_grad_(), decay.clone().requires_grad_())
    compiled = torch.compile(Gather(), backend="aot_eager", fullgraph=True)(*leaves)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(
        torch.autograd.grad(compiled.square().sum(), leaves[2:]),
        torch.autograd.grad(Gather()(*leaves).square().sum(), leaves[2:]),
    )
    torch.testing.assert_close(torch.export.export(Gather(), inputs).module()(*inputs), expected)
    assert torch.equal(torch.fx.symbolic_trace(Gather())(*inputs), expected)


def test_flops():
    x, decay, parent = make_inputs(8)
    with FlopCounterMode(display=False) as counter:
        tree_scan(x.requires_grad_(), decay, parent).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * 2 * 12 * 3


# --- bad input --------------------------------------------------------------------------------------------------------


def bad_calls():
    x, decay, parent = make_inputs(9, dtype=torch.float32)
    cycle, high, itself = parent.clone(), parent.clone(), parent.clone()
    cycle[1, 0], high[0, 3], itself[0, 0] = 11, 12, 0
    ones = torch.ones
    return {
        "dimensions": (lambda: tree_scan(x[0], decay, parent), ValueError, r"x must be \(b, L, d\)"),
        "decay": (lambda: tree_scan(x, decay[..., :1], parent), ValueError, r"decay has shape \(2, 12, 1\)"),
        "parent": (lambda: tree_scan(x, decay, parent[:, 1:]), ValueError, r"parent has shape \(2, 11\), expected"),
        "dtype": (lambda: tree_scan(x.int(), decay, parent), TypeError, "x must be float32"),
        "mixed": (lambda: tree_scan(x.double(), decay, parent), TypeError, "float64 does not mix"),
        "parent dtype": (lambda: tree_scan(x, decay, parent.int()), TypeError, "parent must be int64"),
        "device": (lambda: tree_scan(x, decay.to("meta"), parent), ValueError, "decay is on meta but x is on cpu"),
        "cycle": (lambda: tree_scan(x, decay, cycle), ValueError, "cycle"),
        "own parent": (lambda: tree_scan(x, decay, itself, backend="reference"), ValueError, "cycle"),
        "range": (lambda: tree_scan(x, decay, high), ValueError, r"to 12; with 12 vertices.*\[-1, 11\]"),
        "backend": (
            lambda: tree_scan(x, decay, parent, backend="fast"),
            ValueError,
            "unknown backend 'fast'; expected one of portable, reference",
        ),
        "tree dimensions": (lambda: spanning_tree(ones(2, 3), ones(2, 4, 2)), ValueError, "down must be"),
        "tree sizes": (lambda: spanning_tree(ones(2, 3, 3), ones(2, 4, 3)), ValueError, r"want \(2, 4, 2\)"),
        "tree dtype": (lambda: spanning_tree(ones(1, 1, 2).int(), ones(1, 2, 1)), TypeError, "floating dtype"),
    }


@pytest.mark.parametrize("name", list(bad_calls()))
def test_bad_input_is_named(name):
    call, error, message = bad_calls()[name]
    with pytest.raises(error, match=message):
        call()
