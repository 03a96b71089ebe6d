import pytest
import torch
import torch.nn.functional as F

from visionssm.ops import causal_conv1d


def by_definition(x, weight, bias, order):
    """out[t] = bias + sum_j weight[W - 1 - j] x[order[t - j]], one tap at a time."""
    b, _, d = x.shape
    k, T = order.shape
    W = weight.shape[-1]
    out = bias.expand(b, T, k, d).clone()
    for r in range(k):
        for t in range(T):
            for j in range(min(W, t + 1)):
                token = order[r, t - j]
                if token >= 0:
                    out[:, t, r] += weight[r, :, W - 1 - j] * x[:, token]
    return out


@pytest.mark.parametrize("L", [1, 2, 3, 9])
def test_plain_equals_torch_conv1d(L):
    x, weight, bias = torch.randn(2, L, 5), torch.randn(5, 4), torch.randn(5)
    expected = F.conv1d(F.pad(x.mT, (3, 0)), weight[:, None], bias, groups=5).mT
    torch.testing.assert_close(causal_conv1d(x, weight, bias), expected)


@pytest.mark.parametrize("padded", [False, True])
def test_orders(padded):
    x, weight, bias = torch.randn(2, 6, 3).double(), torch.randn(2, 3, 4).double(), torch.randn(2, 3).double()
    order = torch.stack([torch.randperm(6), torch.randperm(6)])
    if padded:
        order = torch.cat([order, torch.full((2, 3), -1)], 1)[:, torch.randperm(9)]
    torch.testing.assert_close(causal_conv1d(x, weight, bias, order), by_definition(x, weight, bias, order))
    per_route = causal_conv1d(x[:, :, None].expand(-1, -1, 2, -1), weight, bias, order)
    torch.testing.assert_close(per_route, by_definition(x, weight, bias, order))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_rounded_once(dtype):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(s, generator=g).to(dtype) for s in ((2, 50, 8), (8, 4), (8,)))
    expected = causal_conv1d(x.double(), weight.double(), bias.double())
    y = causal_conv1d(x, weight, bias)
    assert y.dtype == dtype
    assert ((y.double() - expected).abs() <= 0.501 * torch.finfo(dtype).eps * expected.abs() + 1e-5).all()


def test_empty_batch():
    x = torch.zeros(0, 6, 5, requires_grad=True)
    order = torch.tensor([[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
    y = causal_conv1d(x, torch.randn(5, 4), torch.randn(5), order)
    assert y.shape == (0, 6, 2, 5)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_gradcheck():
    x, weight, bias = (torch.randn(s).double().requires_grad_() for s in ((1, 5, 2), (2, 2, 3), (2, 2)))
    order = torch.tensor([[0, 1, -1, 2, 3, 4], [4, -1, 3, 2, 1, 0]])
    assert torch.autograd.gradcheck(lambda *a: causal_conv1d(*a, order), (x, weight, bias))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(weight=torch.zeros(4, 3)), ValueError, "weight has 4 channels but x has 5"),
        (dict(bias=torch.zeros(3)), ValueError, "bias has 3 channels"),
        (dict(order=torch.tensor([[0, 9]])), ValueError, "entries from 0 to 9"),
        (dict(order=torch.zeros(1, 3)), TypeError, "int32 or int64"),
        (
            dict(weight=torch.zeros(3, 5, 4), order=torch.zeros(2, 6, dtype=torch.int32)),
            ValueError,
            "routes disagree: x 1, weight 3, order 2$",
        ),
        (dict(weight=torch.zeros(2, 5, 4), bias=torch.zeros(3, 5)), ValueError, "disagree: x 1, weight 2, bias 3$"),
    ],
)
def test_bad_input_is_named(changes, error, message):
    arguments = {**dict(x=torch.zeros(2, 6, 5), weight=torch.zeros(5, 4)), **changes}
    with pytest.raises(error, match=message):
        causal_conv1d(**arguments)
