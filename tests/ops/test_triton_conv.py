"""The convolution's Triton kernels against its formula in float64: compiled where there is a GPU, else interpreted."""

import pytest
import torch

pytest.importorskip("triton")
from visionssm.ops import causal_conv1d  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
ORDERS = {
    "none": None,
    "permutation": [[3, 0, 4, 1, 2], [2, 1, 4, 0, 3]],
    "padded": [[3, -1, 0, 4, 1, 2, -1], [-1, 2, 1, 4, -1, 0, 3]],
    "part": [[3, 0], [1, 2]],
    "several": [[3, 0, 3, 1, 0], [1, 1, 4, 0, 3]],
}


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


def compare(leaves, order, monkeypatch, tolerance, **options):
    order = None if order is None else torch.tensor(order)
    expected = outputs([t.double() for t in leaves], order, "portable", monkeypatch, **options)
    on_device = [t.to(DEVICE) for t in leaves]
    actual = outputs(on_device, None if order is None else order.to(DEVICE), "triton", monkeypatch, **options)
    assert actual[0].grad_fn.name() == "ConvolveBackward"
    for a, e, t in zip(actual, expected, (leaves[0], *leaves), strict=True):
        assert a.dtype == t.dtype
        torch.testing.assert_close(a.double().cpu(), e, rtol=tolerance, atol=tolerance * e.abs().max().item())


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("kind", ORDERS)
def test_orders(kind, activation, monkeypatch):
    compare(tensors(), ORDERS[kind], monkeypatch, 2e-6, activation=activation)


@pytest.mark.parametrize("routes", [(2, 2, 2), (2, 1, 1), (1, 1, 2)])
@pytest.mark.parametrize("kind", ["none", "padded"])
def test_routes(routes, kind, monkeypatch):
    compare(tensors(routes), ORDERS[kind], monkeypatch, 2e-6, activation="silu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype, monkeypatch):
    compare(tensors(dtype=dtype), ORDERS["permutation"], monkeypatch, TOLERANCE[dtype], activation="silu")


@pytest.mark.parametrize(("L", "d", "W"), [(1, 1, 4), (33, 130, 3), (2, 5, 1)])
def test_sizes(L, d, W, monkeypatch):
    compare(tensors((1, 1, 1), d, L, W), None, monkeypatch, 4e-6, activation="silu")


def test_views_with_gaps(monkeypatch):
    x, weight, bias = tensors(d=6)
    compare([x[..., 1:4], weight[:, :3], bias[:, 2:5]], ORDERS["permutation"], monkeypatch, 2e-6)
    compare([x.transpose(1, 3).contiguous().transpose(1, 3), weight, bias], ORDERS["part"], monkeypatch, 2e-6)


def test_plain_without_bias(monkeypatch):
    x, weight, _ = tensors((1, 1, 1))
    x, weight = x.squeeze(2), weight.squeeze(0)
    monkeypatch.setenv("VISIONSSM_BACKEND", "portable")
    expected = causal_conv1d(x, weight, activation="silu")
    monkeypatch.setenv("VISIONSSM_BACKEND", "triton")
    y = causal_conv1d(x.to(DEVICE), weight.to(DEVICE), activation="silu")
    torch.testing.assert_close(y.cpu(), expected)


def test_second_derivatives_go_through_the_formula(monkeypatch):
    leaves = [t.to(DEVICE).requires_grad_() for t in tensors()]
    order = torch.tensor(ORDERS["padded"], device=DEVICE)

    def second(backend):
        monkeypatch.setenv("VISIONSSM_BACKEND", backend)
        y = causal_conv1d(*leaves, order, activation="silu")
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for a, e in zip(second("triton"), second("portable"), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_unknown_activation():
    with pytest.raises(ValueError, match="unknown activation 'gelu'; expected 'silu' or None"):
        causal_conv1d(*tensors(), activation="gelu")
