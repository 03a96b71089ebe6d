"""Rounding, and rewritings that keep the function."""

import pytest
import timm
import torch

import visionssm  # noqa: F401
from tests.families import PICO
from visionssm.compression.quantization import (
    REWRITINGS,
    PercentileQuantizer,
    Quantization,
    Quantizer,
    hadamard_rotation,
    prepare,
    quantize,
    quantize_weight,
    rewrite,
    signal_to_noise,
)
from visionssm.compression.rewriting import applicable, structure

# with a mixer for each way of reading weights
FEW = ("test_vim", "test_vmamba", "test_plainmamba", "test_spatialmamba", "test_hydra")


def vim():
    torch.manual_seed(0)
    model = timm.create_model("test_vim", num_classes=5, dtype=torch.float64).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or "dt_" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


def vmamba():
    torch.manual_seed(0)
    args = dict(num_classes=5, dtype=torch.float64)
    return timm.create_model("test_vmamba", **args).eval()


def data(size=64, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(2, 3, size, size, generator=generator, dtype=dtype), torch.zeros(2)) for _ in range(2)]


@pytest.mark.parametrize("make", [vim, vmamba])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("steps", [*((step,) for step in REWRITINGS), tuple(REWRITINGS) * 2])
def test_rewriting_keeps_the_function(steps, calibrated, make):
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model = make()
    can = applicable(model)
    if make is vim:
        assert can == tuple(REWRITINGS)
    steps = [step for step in steps if step in can and (calibrated or step not in ("center", "smooth_gate"))]
    if not steps:
        pytest.skip("nothing to do")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
        found = rewrite(model, steps, loader=data() if calibrated else None)(x)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    after = model.state_dict()
    assert any(name not in before or not torch.equal(value, before[name]) for name, value in after.items())
    fresh = structure(make(), steps)
    fresh.load_state_dict(after)
    with torch.no_grad():
        assert torch.equal(fresh(x), found)


@pytest.mark.parametrize(
    ("name", "size", "kwargs"),
    [
        ("test_efficientvmamba", (44, 52), {}),  # a lattice that reads beyond an odd map
        ("test_vim", (64, 64), dict(pruning=((1, 0.5),))),  # states that decay over what is left out
        ("test_hrvmamba", (64, 64), {}),  # no convolution before the scan
    ],
)
def test_rewriting_keeps_the_function_of_scans_with_gaps(name, size, kwargs):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, dtype=torch.float64, **kwargs).eval()
    for key, parameter in model.named_parameters():
        if "dt_weight" in key or "x_proj" in key:
            torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    steps = [step for step in ("center", "smooth_step", "rotate_step", "smooth_conv") if step in applicable(model)]
    with torch.no_grad():
        expected = model(x)
        found = rewrite(model, steps, loader=[x])(x)
    assert any(key.endswith("delta_shift") for key in model.state_dict())
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-11)


def test_rewriting_refuses():
    with pytest.raises(ValueError, match="'spin'"):
        rewrite(vim(), ["spin"])
    with pytest.raises(TypeError, match="no place for the rewriting 'norm'"):
        rewrite(timm.create_model("test_vmamba"), ["norm"])
    with pytest.raises(TypeError, match="no place for any"):
        rewrite(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="bias"):
        rewrite(timm.create_model("test_vim", norm_layer="layernorm"), ["norm"])
    with pytest.raises(ValueError, match="needs calibration"):
        rewrite(vim(), ["center"])
    with pytest.raises(ValueError, match="finite"):
        rewrite(vim(), ["center"], loader=[torch.full((1, 3, 64, 64), float("nan"), dtype=torch.float64)])


def test_principal_axes():
    """Rotated to principal axes and spread by Hadamard's matrix, all channels of the step size vary alike."""
    model = rewrite(vim(), ["rotate_step"], loader=data())
    lows = []
    ssm = model.blocks[1].mixer.ssm
    handle = ssm.register_forward_pre_hook(lambda _, args: lows.append(ssm.project(args[0])[0][:, :, 0].flatten(0, 1)))
    with torch.no_grad():
        for images, _ in data():
            model(images)
    handle.remove()
    low = torch.cat(lows)
    moments = low.square().mean(0)
    if ssm.splits[0] in (1, 2, 4, 8):
        torch.testing.assert_close(moments, moments.mean().expand_as(moments), rtol=1e-6, atol=0)


@pytest.mark.parametrize("observer", ["minmax", "percentile"])
@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in PICO])
def test_every_family_is_quantised(name, observer):
    """8 bits are near the float model, 4 further off; a fresh model takes the state dict; 16 bits change nothing."""
    if observer == "percentile" and name not in ("test_vim", "test_vmamba"):
        pytest.skip("one observer is enough")

    def make():
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=5).eval()

    size = timm.models.get_pretrained_cfg(name).input_size
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(2, *size, generator=generator) for _ in range(2)]
    with torch.no_grad():
        expected = make()(batches[0])
        errors = {}
        for bits in (4, 8, 16):
            model = make()
            done = quantize(model, batches, weight_bits=bits, act_bits=bits, observer=observer)
            found = model(batches[0])
            errors[bits] = float((found - expected).norm() / expected.norm())
    assert errors[16] < 1e-5 and errors[8] < errors[4] and errors[8] < 0.2, errors
    assert done.weights and done.inputs
    assert done.bytes(model) <= sum(p.numel() * 4 for p in model.parameters())
    fresh = prepare(make(), done)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(batches[0]), found)


def test_quantising_refuses():
    images = [torch.randn(1, 3, 64, 64, dtype=torch.float64)]
    for data_, args, message in [
        (images, {"observer": "mean"}, "observer"),
        (images, {"weight_bits": 1}, "from 2 to 16"),
        (images, {"skip": ["heat"]}, "did you mean 'head'"),
        ([], {}, "empty"),
        ([images[0] * float("nan")], {}, "NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            quantize(vim(), data_, **args)
    model = vim()
    done = quantize(model, images, skip=["head"])
    assert "head.weight" not in done.weights and "head.input_quantizer" not in done.inputs
    with pytest.raises(ValueError, match="already"):
        quantize(model, images)
    with pytest.raises(ValueError, match="no layer 'blocks.3.mixer.in_proj'"):
        prepare(timm.create_model("test_vmamba"), Quantization(8, 8, inputs=["blocks.3.mixer.in_proj.input_quantizer"]))


def test_noise_of_layers():
    model, images = vim(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    coarse, fine = vim(), vim()
    quantize(coarse, [images], weight_bits=4)
    quantize(fine, [images], weight_bits=8)
    low, high = signal_to_noise(model, coarse, images), signal_to_noise(model, fine, images)
    assert low.keys() == high.keys() and "head" in low
    assert all(high[name] > low[name] > 0 for name in low)


def test_percentile_leaves_outliers_out():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x[7] = 1e4
    wide, narrow = Quantizer(8), PercentileQuantizer(8, 0.9999)
    for part in x.split(1000):
        wide.observe(part)
        narrow.observe(part)
    assert wide.high == 1e4 and narrow.high < 100
    plain = PercentileQuantizer(8)
    plain.observe(torch.linspace(-1, 1, 1001))
    assert abs(float(plain.high) - 1) < 1e-2 and abs(float(plain.low) + 1) < 1e-2
    with pytest.raises(ValueError, match="finite"):
        plain.observe(torch.tensor([float("inf")]))


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


@pytest.mark.slow
def test_a_quantised_model_compiles_and_exports():
    model, (x, _) = timm.create_model("test_vim", num_classes=5).eval(), data(dtype=torch.float32)[0]
    quantize(model, [x])
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected, rtol=0.02, atol=0.02)  # a value may round to the next level
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected, rtol=0.02, atol=0.02)
