"""Derivatives of whole models by torch.func: right in every family, not merely without an error."""

import sys

import pytest
import timm
import torch
from torch import func
from torch.nn.attention import SDPBackend, sdpa_kernel

import visionssm
from tests.families import at_size

REFUSING = ("tree_scan", "wavefront_scan")  # the operators that have no tangents and no transforms; no other may refuse


def refusing_operator(model) -> str | None:
    """The one of them that a model's file uses."""
    return next((name for name in REFUSING if hasattr(sys.modules[type(model).__module__], name)), None)


@pytest.fixture(params=visionssm.list_models("test_*"))
def model(request):
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=5, **at_size(request.param, 32)).double().eval()
    with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no tangents and no second derivatives
        yield model.requires_grad_(False)


def images(*shape):
    return torch.randn(*shape, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def difference(function, x, v, step=1e-6):
    """The derivative of a function at x along v by central differences, so close that no ReLU has its kink between."""
    return (function(x + step * v) - function(x - step * v)) / (2 * step)


def assert_close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_func_derivatives(model):
    """jvp, vjp, grad, and a slice of the Hessian, against finite differences in float64."""
    x, v, w = images(3, 1)

    def loss(x):
        return model(x).square().sum()

    operator = refusing_operator(model)
    if operator:
        with pytest.raises(NotImplementedError, match=rf"{operator} has no tangents.*torch\.autograd\.grad"):
            func.jvp(model, (x,), (v,))
        inputs = x.clone().requires_grad_()
        g = torch.autograd.grad(loss(inputs), inputs)[0]
        assert_close((g * v).sum(), difference(loss, x, v), 1e-6)
        return
    y, dy = func.jvp(model, (x,), (v,))
    assert_close(y, model(x), 1e-9)
    assert_close(dy, difference(model, x, v), 1e-6)

    g = func.grad(loss)(x)
    assert_close((g * v).sum(), (2 * y * dy).sum(), 1e-8)
    pulled = func.vjp(model, x)[1](2 * y)[0]
    assert_close(pulled, g, 1e-8)
    inputs = x.clone().requires_grad_()
    assert_close(torch.autograd.grad(loss(inputs), inputs)[0], g, 1e-8)  # by the kernels

    directions = torch.stack([v, w])
    hessian = func.hessian(lambda s: loss(x + torch.tensordot(s, directions, 1)))(x.new_zeros(2))
    rows = torch.stack([difference(func.grad(loss), x, d) for d in directions])
    expected = (rows.unsqueeze(1) * directions.unsqueeze(0)).flatten(2).sum(2)
    assert_close(hessian, expected, 1e-5)


def test_vmap(model):
    """Over stacks of images, and gradients per image of the scan's own parameters."""
    x = images(3, 2)
    operator = refusing_operator(model)
    if operator:
        with pytest.raises(NotImplementedError, match=rf"{operator} has no .*transforms of torch\.func"):
            func.vmap(model)(x)
        return
    mapped = func.vmap(model)(x)
    assert_close(mapped, torch.stack([model(image) for image in x]), 1e-9)

    parameters = {n: p for n, p in model.named_parameters() if n.endswith(("A_log", ".D"))}
    assert parameters

    def loss(parameters, image):
        return func.functional_call(model, parameters, (image.unsqueeze(0),)).square().sum()

    found = func.vmap(func.grad(loss), in_dims=(None, 0))(parameters, x[:, 0])
    for i, image in enumerate(x[:, 0]):
        leaves = {n: p.detach().clone().requires_grad_() for n, p in parameters.items()}
        expected = torch.autograd.grad(loss(leaves, image), list(leaves.values()))
        for name, e in zip(leaves, expected, strict=True):
            assert_close(found[name][i], e, 1e-8)
