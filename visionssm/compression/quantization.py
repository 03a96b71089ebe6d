"""Rounded weights and activations (MambaQuant, arXiv:2501.13484).

Rounding is simulated: values take the levels of a few bits, arithmetic stays in floating point, so accuracy can be
studied, not speed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import nearest
from ..layers import MambaMixer, SelectiveSSM
from .rewriting import REWRITINGS, hadamard_rotation, rewrite, smoothing_factors

__all__ = [
    "OBSERVERS",
    "REWRITINGS",
    "PercentileQuantizer",
    "Quantization",
    "Quantizer",
    "hadamard_rotation",
    "prepare",
    "quantize",
    "quantize_weight",
    "rewrite",
    "signal_to_noise",
    "smoothing_factors",
]

_STEPS = (1e-5, 1e4)  # smallest and largest distance of two levels
_LARGEST_ZERO = 1e4
_EXACT_BITS = 16  # from here on values are kept
_BINS = 2048


class Quantizer(nn.Module):
    """Rounds values to the levels of a few bits, over a range that is observed first and always holds 0.

    With levels 0 to 2^bits - 1, step = (high - low) / (2^bits - 1), zero = round(-low / step), a value becomes
    (clamp(round(x / step) + zero) - zero) * step, halves rounded to even. 16 bits keep values.

    Args:
        bits: From 2 to 16.
        axis: One range for each index of this axis; None for one of the whole tensor.

    Raises:
        ValueError: bits are out of range.
    """

    low: Tensor
    high: Tensor

    def __init__(self, bits: int = 8, axis: int | None = None):
        super().__init__()
        if not 2 <= bits <= _EXACT_BITS:
            raise ValueError(f"bits must be from 2 to {_EXACT_BITS}, got {bits}")
        self.bits = bits
        self.axis = axis
        self.observing = False  # while ranges are found, values pass
        self.register_buffer("low", None)
        self.register_buffer("high", None)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Widen the range to the values of x; the order of calls does not matter.

        Raises:
            ValueError: x has no values, or some that are not finite.
        """
        if x.numel() == 0 or not torch.isfinite(x).all():
            raise ValueError("calibration data must have values, all of them finite")
        rows = x.reshape(1, -1) if self.axis is None else x.movedim(self.axis, 0).flatten(1)
        low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    @property
    def scale(self) -> Tensor:
        """Distance of two levels, one for each range (n)."""
        if self.low is None:
            raise RuntimeError("the range is unknown: call observe with calibration data first")
        return ((self.high - self.low) / (2**self.bits - 1)).clamp(*_STEPS)

    @property
    def zero(self) -> Tensor:
        """The level of the value 0, one for each range (n)."""
        largest = max(_LARGEST_ZERO, 2**self.bits - 1)  # the original's 10000 alone cuts ranges from 14 bits on
        return (-self.low / self.scale).clamp(max=largest).round()

    def forward(self, x: Tensor) -> Tensor:
        """Round x; the shape stays.

        Raises:
            RuntimeError: nothing was observed.
            ValueError: x has another length along the axis than what was observed.
        """
        if self.observing:
            self.observe(x)
            return x
        if self.bits >= _EXACT_BITS:
            return x
        scale, zero = self.scale, self.zero
        if self.axis is not None:
            if x.shape[self.axis] != len(scale):
                raise ValueError(f"axis {self.axis} was observed with length {len(scale)}, got {x.shape[self.axis]}")
            shape = [1] * x.ndim
            shape[self.axis] = -1
            scale, zero = scale.view(shape), zero.view(shape)
        levels = (torch.round(x / scale) + zero).clamp(0, 2**self.bits - 1)
        return (levels - zero) * scale


def quantize_weight(weight: Tensor, bits: int = 8, axis: int | None = 0) -> Tensor:
    """A weight rounded over its own range, by default one for each output channel (see `Quantizer`)."""
    quantizer = Quantizer(bits, axis)
    quantizer.observe(weight)
    return quantizer(weight)


class PercentileQuantizer(Quantizer):
    """A `Quantizer` of one range that leaves out the few largest values, by a histogram over all that was observed.

    Args:
        bits: From 2 to 16.
        share: Of the values, on each side, that the range holds.
    """

    counts: Tensor

    def __init__(self, bits: int = 8, share: float = 0.999999):
        super().__init__(bits)
        self.share = share
        self.register_buffer("counts", torch.zeros(_BINS, dtype=torch.float64), persistent=False)
        self.limit = 1e-3

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Count the values of x; the order of calls does not matter beyond the width of a bin.

        Raises:
            ValueError: x has no values, or some that are not finite.
        """
        if x.numel() == 0 or not torch.isfinite(x).all():
            raise ValueError("calibration data must have values, all of them finite")
        while float(x.abs().max()) > self.limit:  # two bins become one, the outer ones are new
            self.limit *= 2
            half = self.counts.view(-1, 2).sum(1)
            self.counts = torch.nn.functional.pad(half, (_BINS // 4, _BINS // 4))
        values = x.detach().float().flatten()
        place = ((values / self.limit + 1) * (_BINS / 2)).long().clamp(0, _BINS - 1)
        self.counts += torch.bincount(place, minlength=_BINS).to(self.counts)
        below = self.counts.cumsum(0) / self.counts.sum()
        edges = torch.linspace(-self.limit, self.limit, _BINS + 1, dtype=x.dtype, device=x.device)
        low = edges[int((below <= 1 - self.share).sum())]
        high = edges[min(int((below < self.share).sum()), _BINS - 1) + 1]
        # no further than what there is
        least, most = values.min().to(x), values.max().to(x)
        self.least = min(getattr(self, "least", least), least)
        self.most = max(getattr(self, "most", most), most)
        self.low = torch.maximum(low, self.least).clamp(max=0).view(1)
        self.high = torch.minimum(high, self.most).clamp(min=0).view(1)


OBSERVERS = {"minmax": Quantizer, "percentile": PercentileQuantizer}


def _round_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (module.input_quantizer(inputs[0]), *inputs[1:])


@dataclass
class Quantization:
    """What of a model is rounded, and how; plain values, to be stored with it.

    Attributes:
        weight_bits: Of the weights.
        act_bits: Of what enters a layer.
        observer: How ranges of activations are found, of `OBSERVERS`.
        weights: Names of the parameters that are rounded.
        inputs: Paths of the quantizers of activations.
    """

    weight_bits: int
    act_bits: int
    observer: str = "minmax"
    weights: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)

    def bytes(self, model: nn.Module) -> int:
        """Bytes of the parameters with rounded ones in their bits, and a range (8 bytes) for each of their rows."""
        total = 0
        for name, p in model.named_parameters():
            if name in self.weights:
                total += -(-p.numel() * self.weight_bits // 8) + 8 * _rows(name, p).shape[0]
            else:
                total += p.numel() * p.element_size()
        return total


def _rows(name: str, weight: Tensor) -> Tensor:
    """A weight as (output channels, the rest); parameters of routes have their channels behind the route axis."""
    return weight.flatten(0, 1) if name.endswith((".x_proj_weight", ".dt_weight", ".conv_weight")) else weight


def _targets(model: nn.Module, skip: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of parameters to round, and paths of the quantizers of inputs."""
    weights, inputs = [], []
    for path, module in model.named_modules():
        if any(path == s or path.startswith(f"{s}.") for s in skip):
            continue
        depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        if isinstance(module, nn.Linear) or depthwise:
            weights.append(f"{path}.weight")
            inputs.append(f"{path}.input_quantizer")
        elif isinstance(module, SelectiveSSM):
            weights += [f"{path}.x_proj_weight", f"{path}.dt_weight"]
            if type(module).forward is SelectiveSSM.forward and type(module).project is SelectiveSSM.project:
                inputs += [f"{path}.input_quantizer", f"{path}.delta_quantizer"]
        elif isinstance(module, MambaMixer):
            weights.append(f"{path}.conv_weight")
            if type(module).forward is MambaMixer.forward:
                inputs.append(f"{path}.conv_quantizer")
    known = dict(model.named_parameters())
    return [name for name in weights if name in known], inputs


def prepare(model: nn.Module, quantization: Quantization) -> nn.Module:
    """Give a model the quantizers of activations that a description names, their ranges unknown.

    Their buffers `low` and `high` are parts of the state dict from then on.

    Raises:
        ValueError: the model is quantised already, or has no such layer.
    """
    if any(isinstance(module, Quantizer) for module in model.modules()):
        raise ValueError("the model is quantised already; begin with the one in floating point")
    parameter = next(model.parameters())
    for path in quantization.inputs:
        owner_path, _, name = path.rpartition(".")
        try:
            owner = model.get_submodule(owner_path)
        except AttributeError as error:
            raise ValueError(f"{type(model).__name__} has no layer {owner_path!r} to quantise") from error
        quantizer = OBSERVERS[quantization.observer](quantization.act_bits)
        quantizer.low = parameter.new_zeros(1)
        quantizer.high = parameter.new_zeros(1)
        setattr(owner, name, quantizer.train(owner.training))
        if not isinstance(owner, SelectiveSSM | MambaMixer):
            owner.register_forward_pre_hook(_round_input)
    return model


@torch.no_grad()
def quantize(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    weight_bits: int = 8,
    act_bits: int = 8,
    per_channel: bool = True,
    observer: str = "minmax",
    skip: Sequence[str] = (),
) -> Quantization:
    """Round weights and activations of a whole model of any family, in place.

    Rounded are all linear layers, depthwise convolutions, and the projections of scans with the low-rank step size
    between them; not the stem, norms, activations, or the recurrence itself. Ranges of activations are fixed: one for
    each tensor, found with the model in floating point. Where a layer's weight is read without the layer being called,
    its weight is rounded and its input is not.

    Args:
        model: A model of this package; it is put into evaluation mode.
        loader: Calibration data: batches of images (b, c, h, w), or pairs of images and labels.
        weight_bits: From 2 to 16; 16 keeps weights.
        act_bits: From 2 to 16; 16 keeps activations.
        per_channel: Ranges of weights are those of output channels; else one for each weight.
        observer: How ranges of activations are found: "minmax", or "percentile" for all but a millionth on each side.
        skip: Paths of modules to leave as they are, such as "head".

    Returns:
        What was done, with which `prepare` makes a model that takes this one's state dict.

    Raises:
        ValueError: bits or observer are unknown, data is empty or not finite, the model is quantised already, or a path
            of `skip` is none of the model's.
    """
    if observer not in OBSERVERS:
        raise ValueError(f"observer must be one of {', '.join(map(repr, OBSERVERS))}, got {observer!r}")
    for bits in (weight_bits, act_bits):
        Quantizer(bits)
    paths = [path for path, _ in model.named_modules() if path]
    for path in skip:
        if path not in paths:
            raise ValueError(f"skip: there is no module {path!r}{nearest(path, paths)}")
    weights, inputs = _targets(model, skip)
    done = Quantization(weight_bits, act_bits, observer, weights, inputs)
    prepare(model.eval(), done)
    for path in inputs:
        quantizer = model.get_submodule(path)
        quantizer.low = quantizer.high = None
        quantizer.observing = True
    device, empty = next(model.parameters()).device, True
    for batch in loader:
        images = batch[0] if isinstance(batch, tuple | list) else batch
        if not torch.isfinite(images).all():
            raise ValueError("calibration images must be finite, found NaN or infinity")
        empty = False
        model(images.to(device))
    if empty:
        raise ValueError("the calibration data is empty")
    for path in inputs:
        owner_path, _, name = path.rpartition(".")
        owner = model.get_submodule(owner_path)
        quantizer = getattr(owner, name)
        quantizer.observing = False
        if quantizer.low is None:  # its layer was not called
            setattr(owner, name, None if isinstance(owner, SelectiveSSM | MambaMixer) else nn.Identity())
    done.inputs = [path for path in inputs if isinstance(_get(model, path), Quantizer)]
    for name, parameter in model.named_parameters():
        if name in weights:
            rows = _rows(name, parameter)
            parameter.copy_(quantize_weight(rows, weight_bits, 0 if per_channel else None).view_as(parameter))
    return done


def _get(model: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name)


@torch.no_grad()
def signal_to_noise(reference: nn.Module, model: nn.Module, images: Tensor) -> dict[str, float]:
    """Signal-to-noise ratio (dB) of what layers give in a quantised model, against the model in floating point.

    Args:
        reference: The model before.
        model: The model after; layers are found by their paths.
        images: Images (b, c, h, w).

    Returns:
        10 log10(sum of squares / sum of squared differences) by path, for the layers whose inputs are rounded.
    """
    names = [
        path
        for path, module in model.named_modules()
        if isinstance(getattr(module, "input_quantizer", None), Quantizer)
    ]
    outputs: list[dict[str, Tensor]] = []
    for each in (reference, model):
        found: dict[str, Tensor] = {}
        handles = [
            each.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name, found=found: found.__setitem__(name, out.detach().double())
            )
            for name in names
        ]
        try:
            each.eval()(images)
        finally:
            for handle in handles:
                handle.remove()
        outputs.append(found)
    ratios = {}
    for name in names:
        signal, noise = outputs[0][name].square().sum(), (outputs[0][name] - outputs[1][name]).square().sum()
        ratios[name] = float(10 * torch.log10(signal / noise.clamp(min=1e-300)))
    return ratios
