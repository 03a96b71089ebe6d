"""Derivatives beyond the first in reverse: tangents, second derivatives, torch.func; by finite differences."""

import pytest
import torch
from test_selective_scan import make_inputs
from torch.autograd import forward_ad
from torch.autograd.functional import hvp

from visionssm.ops import available_backends, causal_conv1d, selective_scan

# float64, which the native backend leaves to others; of Triton below
BACKENDS = [name for name in available_backends() if name not in ("triton", "native")]


def make_function(backend="portable", dtype=torch.float64, **case):
    """A function of the differentiable tensors, which gives output and last state; and these tensors."""
    case = dict(b=2, L=5, T=6, k=2, d=2, N=2, rank=2, kind="padded", shared=("u",), initial=True, last=True) | case
    args, options = make_inputs(1, **case, dtype=dtype)
    names = [n for n, x in args.items() if x is not None]

    def function(*tensors):
        return selective_scan(**dict(zip(names, tensors, strict=True)), **options, backend=backend)

    return function, tuple(args[n] for n in names)


def loss(function):
    def value(*tensors):
        y, last = function(*tensors)
        return y.square().sum() + last.sin().sum()

    return value


def leaves(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", [dict(), dict(N=1, kind="raster", rank=0, softplus=False)], ids=["padded", "raster"])
def test_every_derivative_by_finite_differences(backend, case):
    function, tensors = make_function(backend, **dict(b=1, L=3, T=4, k=2, d=1, N=2, rank=1) | case)
    assert torch.autograd.gradcheck(function, leaves(tensors), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves(tensors), check_fwd_over_rev=True)


@pytest.mark.skipif("triton" not in available_backends(), reason="the Triton kernels cannot run here")
def test_second_derivatives_through_triton():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for backend, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        function, tensors = make_function(backend, dtype)
        tensors = leaves(tensors)
        value = loss(lambda *t, f=function: f(*(x.to(device) for x in t)) if device == "cpu" else f(*t))
        first = torch.autograd.grad(value(*tensors), tensors, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), tensors))
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-4 * e.abs().max().item())


def test_third_derivatives():
    function, tensors = make_function(b=1, L=3, kind="raster", rank=0)
    u = leaves(tensors)[0]
    value = loss(lambda u: function(u, *tensors[1:]))
    g = torch.autograd.grad(value(u), u, create_graph=True)[0]
    gg = torch.autograd.grad(g.sin().sum(), u, create_graph=True)[0]
    ggg = torch.autograd.grad(gg.square().sum(), u)[0]
    expected = torch.func.grad(
        lambda u: torch.func.grad(lambda u: torch.func.grad(value)(u).sin().sum())(u).square().sum()
    )(tensors[0])
    torch.testing.assert_close(ggg, expected)


def test_dual_numbers_equal_jvp():
    function, tensors = make_function()
    tangents = tuple(torch.randn_like(t) for t in tensors)
    (y, last), (dy, dlast) = torch.func.jvp(function, tensors, tangents)
    torch.testing.assert_close((y, last), function(*tensors))
    eps = 1e-6
    up, down = (function(*(t + s * eps * v for t, v in zip(tensors, tangents, strict=True))) for s in (1, -1))
    torch.testing.assert_close(dy, (up[0] - down[0]) / (2 * eps), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(dlast, (up[1] - down[1]) / (2 * eps), rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        dual = function(*(forward_ad.make_dual(t, v) for t, v in zip(tensors, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual[0]).tangent, dy)
        # tensors without tangents go by the kernels, also here
        assert forward_ad.unpack_dual(function(*tensors)[0]).tangent is None


def test_func_equals_autograd():
    function, tensors = make_function()
    value, where = loss(function), tuple(range(len(tensors)))
    inputs = leaves(tensors)
    expected = torch.autograd.grad(value(*inputs), inputs)
    torch.testing.assert_close(torch.func.grad(value, argnums=where)(*tensors), expected)
    torch.testing.assert_close(torch.func.vjp(value, *tensors)[1](torch.ones((), dtype=torch.float64)), expected)
    u = tensors[0]
    of_u = loss(lambda u: function(u, *tensors[1:]))
    hessian = torch.func.hessian(of_u)(u)
    v = torch.randn_like(u)
    expected = hvp(of_u, u, v)[1]
    torch.testing.assert_close(torch.einsum("abcdef,def->abc", hessian, v), expected)
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(of_u), (u,), (v,))[1], expected)


@pytest.mark.parametrize("name", ["u", "A", "initial_state", "dt_weight"])
def test_vmap(name):
    args, options = make_inputs(2, rank=2, shared=("u",), initial=True, last=True)
    mapped = torch.stack([args[name], 2 * args[name], -0.5 * args[name]], 1)

    def function(x):
        return selective_scan(**args | {name: x}, **options)

    y, last = torch.func.vmap(function, in_dims=1)(mapped)
    for i, x in enumerate(mapped.unbind(1)):
        torch.testing.assert_close((y[i], last[i]), function(x))


def test_gradients_per_sample():
    args, options = make_inputs(3, b=4, rank=2, kind="permutation")
    stored = "u", "delta", "B", "C"

    def value(A, *tensors):
        images = {n: t.unsqueeze(0) for n, t in zip(stored, tensors, strict=True)}
        return selective_scan(**args | images | dict(A=A), **options).square().sum()

    sequences = [args[n] for n in stored]
    found = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0, 0, 0))(args["A"], *sequences)
    for i in range(4):
        (A,) = leaves([args["A"]])
        expected = torch.autograd.grad(value(A, *(t[i] for t in sequences)), A)[0]
        torch.testing.assert_close(found[i], expected)


def test_an_exported_program_has_tangents():
    """Where there is no public function to see the transform, only the operator."""
    args, options = make_inputs(4)

    class Scan(torch.nn.Module):
        def forward(self, u):
            return selective_scan(**args | dict(u=u), **options)

    program = torch.export.export(Scan(), (args["u"],)).module()
    v = torch.randn_like(args["u"])
    torch.testing.assert_close(torch.func.jvp(program, (args["u"],), (v,)), torch.func.jvp(Scan(), (args["u"],), (v,)))


def test_bad_tables_are_refused_under_transforms():
    args, options = make_inputs(5)
    options["order"] = torch.tensor([[0, -2], [0, 1]])
    with pytest.raises(ValueError, match="entries from -2"):
        torch.func.grad(lambda u: selective_scan(**args | dict(u=u), **options).sum())(args["u"])


def test_causal_conv1d():
    x, weight, bias = (torch.randn(s).double() for s in ((2, 5, 2), (2, 2, 3), (2, 2)))
    order = torch.tensor([[0, 1, -1, 2, 3, 4], [4, -1, 3, 2, 1, 0]])

    def function(*tensors):
        return causal_conv1d(*tensors, order)

    assert torch.autograd.gradcheck(function, leaves((x, weight, bias)), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, leaves((x, weight, bias)))
    y = torch.func.vmap(function, in_dims=(0, None, None))(torch.stack([x, 2 * x]), weight, bias)
    torch.testing.assert_close(y[1], function(2 * x, weight, bias))
