"""Rounding, and rewritings that keep the function."""

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.compression.quantization import (
    REWRITINGS,
    Quantizer,
    hadamard_rotation,
    quantize_weight,
    rewrite,
)


def vim():
    torch.manual_seed(0)
    model = timm.create_model("test_vim", num_classes=5, dtype=torch.float64).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "dt_" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


@pytest.mark.parametrize("steps", [*((step,) for step in REWRITINGS), tuple(REWRITINGS) * 2])
def test_rewriting_keeps_the_function(steps):
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model = vim()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        found = rewrite(model, steps)(x)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rewriting_refuses():
    with pytest.raises(ValueError, match="'spin'"):
        rewrite(vim(), ["spin"])
    with pytest.raises(TypeError, match="no blocks"):
        rewrite(timm.create_model("test_vmamba"))
    with pytest.raises(TypeError, match="bias"):
        rewrite(timm.create_model("test_vim", norm_layer="layernorm"))


@pytest.mark.parametrize("size", [1, 8, 12])
def test_rotation_is_orthogonal(size):
    q = hadamard_rotation(size)
    torch.testing.assert_close(q.T @ q, torch.eye(size, dtype=torch.float64), atol=1e-12, rtol=0)
    if size == 8:
        assert torch.allclose(q.abs(), q.new_full((), 8**-0.5))


def test_more_bits_err_less_and_16_keep():
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    errors = [float((quantize_weight(x, bits) - x).square().mean()) for bits in range(2, 17)]
    assert errors[-1] == 0 and all(b < a for a, b in zip(errors, errors[1:], strict=False))
    quantizer = Quantizer(4, axis=0)
    quantizer.observe(x)
    # half a step, and another half at the upper end where the zero was rounded
    assert ((quantizer(x) - x).abs() <= quantizer.scale[:, None] * 1.0001).all()
    assert torch.equal(quantizer(torch.zeros(4, 3)), torch.zeros(4, 3))


def test_calibration():
    first, second = Quantizer(), Quantizer()
    data = [torch.randn(3, 4) for _ in range(3)]
    for x in data:
        first.observe(x)
    for x in [*data[::-1], *data]:
        second.observe(x)
    assert torch.equal(first.scale, second.scale) and torch.equal(first.zero, second.zero)
    with pytest.raises(ValueError, match="finite"):
        first.observe(torch.tensor([float("nan")]))
    with pytest.raises(RuntimeError, match="observe"):
        Quantizer()(data[0])
    with pytest.raises(ValueError, match="from 2 to 16"):
        Quantizer(1)
    rows = Quantizer(8, axis=0)
    rows.observe(torch.randn(3, 4))
    with pytest.raises(ValueError, match="length 3"):
        rows(torch.randn(4, 4))
