"""The convolution's backends against its formula in float64; Triton is interpreted where there is no GPU."""

import random

import pytest
import torch

from visionssm.ops import backend_unavailable, causal_conv1d
from visionssm.ops.conv_backends import CONV_BACKENDS
from visionssm.ops.native import loading

_why_not = {"native": backend_unavailable("native", "cpu"), "triton": backend_unavailable("triton", "cpu")}
if torch.cuda.is_available():
    _why_not["triton"] = None
DEVICES = {"native": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
ORDERS = {
    "none": None,
    "permutation": [[3, 0, 4, 1, 2], [2, 1, 4, 0, 3]],
    "padded": [[3, -1, 0, 4, 1, 2, -1], [-1, 2, 1, 4, -1, 0, 3]],
    "part": [[3, 0], [1, 2]],
    "several": [[3, 0, 3, 1, 0], [1, 1, 4, 0, 3]],
}


@pytest.fixture(params=[backend.name for backend in CONV_BACKENDS])
def backend(request):
    if _why_not[request.param] is not None:
        pytest.skip(f"{request.param}: {_why_not[request.param]}")
    return request.param


def tensors(routes=(1, 2, 2), d=3, L=5, W=4, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    sizes = (2, L, routes[0], d), (routes[1], d, W), (routes[2], d)
    return [torch.randn(s, generator=g).to(dtype) for s in sizes]


def outputs(leaves, order, backend, monkeypatch, **options):
    monkeypatch.setenv("VISIONSSM_BACKEND", backend)
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = causal_conv1d(*leaves, order, **options)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return y, *torch.autograd.grad(y, leaves, weight)


def compare(leaves, order, backend, monkeypatch, tolerance, **options):
    order = None if order is None else torch.as_tensor(order)
    expected = outputs([t.double() for t in leaves], order, "portable", monkeypatch, **options)
    device = DEVICES[backend]
    on_device = [t.to(device) for t in leaves]
    actual = outputs(on_device, None if order is None else order.to(device), backend, monkeypatch, **options)
    assert actual[0].grad_fn.name() == "ConvolveBackward"
    for a, e, t in zip(actual, expected, (leaves[0], *leaves), strict=True):
        assert a.dtype == t.dtype
        torch.testing.assert_close(a.double().cpu(), e, rtol=tolerance, atol=tolerance * e.abs().max().item())


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("kind", ORDERS)
def test_orders(kind, activation, backend, monkeypatch):
    compare(tensors(), ORDERS[kind], backend, monkeypatch, 2e-6, activation=activation)


@pytest.mark.parametrize("routes", [(2, 2, 2), (2, 1, 1), (1, 1, 2)])
@pytest.mark.parametrize("kind", ["none", "padded"])
def test_routes(routes, kind, backend, monkeypatch):
    compare(tensors(routes), ORDERS[kind], backend, monkeypatch, 2e-6, activation="silu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype, backend, monkeypatch):
    compare(tensors(dtype=dtype), ORDERS["permutation"], backend, monkeypatch, TOLERANCE[dtype], activation="silu")


@pytest.mark.parametrize(("L", "d", "W"), [(1, 1, 4), (33, 130, 3), (2, 5, 1)])
def test_sizes(L, d, W, backend, monkeypatch):
    compare(tensors((1, 1, 1), d, L, W), None, backend, monkeypatch, 4e-6, activation="silu")


def test_views_with_gaps(backend, monkeypatch):
    x, weight, bias = tensors(d=6)
    compare([x[..., 1:4], weight[:, :3], bias[:, 2:5]], ORDERS["permutation"], backend, monkeypatch, 2e-6)
    compare([x.transpose(1, 3).contiguous().transpose(1, 3), weight, bias], ORDERS["part"], backend, monkeypatch, 2e-6)


def test_plain_without_bias(backend, monkeypatch):
    x, weight, _ = tensors((1, 1, 1))
    x, weight = x.squeeze(2), weight.squeeze(0)
    monkeypatch.setenv("VISIONSSM_BACKEND", "portable")
    expected = causal_conv1d(x, weight, activation="silu")
    monkeypatch.setenv("VISIONSSM_BACKEND", backend)
    y = causal_conv1d(x.to(DEVICES[backend]), weight.to(DEVICES[backend]), activation="silu")
    torch.testing.assert_close(y.cpu(), expected)


def test_second_derivatives_go_through_the_formula(backend, monkeypatch):
    leaves = [t.to(DEVICES[backend]).requires_grad_() for t in tensors()]
    order = torch.tensor(ORDERS["padded"], device=DEVICES[backend])

    def second(name):
        monkeypatch.setenv("VISIONSSM_BACKEND", name)
        y = causal_conv1d(*leaves, order, activation="silu")
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for a, e in zip(second(backend), second("portable"), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(_why_not["native"] is not None, reason=f"native: {_why_not['native']}")
@pytest.mark.parametrize("instruction_set", ["avx512", "avx2", "baseline"])
def test_any_call_of_the_library(instruction_set, monkeypatch):
    try:
        loading.force_instruction_set(instruction_set)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for seed in range(40):
            r, g = random.Random(seed), torch.Generator().manual_seed(seed)
            K, L, d, W = (
                r.randint(1, 3),
                r.choice([1, 2, 7, 40]),
                r.choice([1, 5, 16, 31, 33, 70]),
                r.choice([1, 3, 4, 6]),
            )
            T = r.choice([1, 3, 4, 18, 45])
            routes = [r.choice([1, K]) for _ in range(3)]
            order = torch.randint(-1, L, (K, T), generator=g) if r.random() < 0.7 else None
            dtype = r.choice([torch.float32, torch.bfloat16, torch.float16])
            leaves = tensors(routes, d, L, W, dtype)
            tolerance = 4e-6 if dtype == torch.float32 else 2e-2
            compare(leaves, order, "native", monkeypatch, tolerance, activation=r.choice([None, "silu"]))
    finally:
        loading.force_instruction_set(None)


def test_not_a_number_survives(backend, monkeypatch):
    monkeypatch.setenv("VISIONSSM_BACKEND", backend)
    x, weight, bias = (t.to(DEVICES[backend]) for t in tensors((1, 1, 1)))
    x[0, 2, 0, 1] = float("nan")
    x[1, 1, 0, 0] = -1e30
    y = causal_conv1d(x, weight, bias, activation="silu")
    assert y[0, 2:, 0, 1].isnan().all() and y.isnan().sum() == 3


@pytest.mark.filterwarnings("ignore")
def test_traced_program_holds_the_formula(backend, monkeypatch):
    monkeypatch.setenv("VISIONSSM_BACKEND", backend)
    leaves = [t.to(DEVICES[backend]) for t in tensors((1, 1, 1))]
    traced = torch.jit.trace(lambda *t: causal_conv1d(*t, activation="silu"), leaves)
    assert "aten::silu" in str(traced.graph)
    torch.testing.assert_close(traced(*leaves), causal_conv1d(*leaves, activation="silu"))


def test_unknown_activation():
    with pytest.raises(ValueError, match="unknown activation 'gelu'; expected 'silu' or None"):
        causal_conv1d(*tensors(), activation="gelu")


@pytest.mark.skipif(
    _why_not["triton"] is not None or DEVICES["triton"] == "cuda",
    reason="memory that is not touched costs nothing on a CPU alone",
)
def test_routes_that_lie_far_apart(monkeypatch):
    """The third route begins 2^31 elements after the first, though one stride still has 32 bits."""
    leaves = tensors((3, 3, 3), d=2, L=3, dtype=torch.bfloat16)
    expected = outputs(leaves, None, "triton", monkeypatch, activation="silu")
    far = torch.empty(2**31 + 1024, dtype=torch.bfloat16).as_strided(leaves[0].shape, (256, 64, 2**30, 1))
    actual = outputs([far.copy_(leaves[0]), *leaves[1:]], None, "triton", monkeypatch, activation="silu")
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
