"""Rounded weights and activations, and rewritings that make a model easier to round (MambaQuant, arXiv:2501.13484).

Rounding is simulated: values take the levels of a few bits, arithmetic stays in floating point, so accuracy can be
studied, not speed. The rewritings change weights, not the function: they even out the ranges of channels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import MambaMixer, StreamBlock

__all__ = [
    "REWRITINGS",
    "Quantizer",
    "hadamard_rotation",
    "quantize_weight",
    "rewrite",
    "smoothing_factors",
]

_STEPS = (1e-5, 1e4)  # smallest and largest distance of two levels
_LARGEST_ZERO = 1e4
_EXACT_BITS = 16  # from here on values are kept


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


def smoothing_factors(activations: Tensor, weights: Tensor) -> Tensor:
    """What to divide channels by so that they and the weights behind them share the burden (SmoothQuant's rule).

    Args:
        activations: Largest magnitude of each channel (d), from calibration data.
        weights: Largest magnitude of the weights that multiply each channel (d).

    Returns:
        sqrt(activations / weights) (d), at least 0.01.
    """
    return (activations.sqrt() / weights.clamp(min=1e-5).sqrt()).clamp(min=1e-2)


def hadamard_rotation(size: int, generator: torch.Generator | None = None, dtype=torch.float64) -> Tensor:
    """A random orthogonal matrix (size, size) that spreads each coordinate over all.

    Random signs times Hadamard's matrix where the size is a power of 2; for others, the orthogonal factor of a matrix
    of normal values.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if size & (size - 1):
        q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        return (q * r.diagonal().sign()).to(dtype)
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    signs = torch.randint(0, 2, (size, 1), generator=generator) * 2 - 1
    return (signs * h / math.sqrt(size)).to(dtype)


def _fold_norm(block: StreamBlock, generator: torch.Generator) -> None:
    norm, linear = block.norm, block.mixer.in_proj
    linear.weight.mul_(norm.weight)
    norm.weight.fill_(1)


def _smooth_conv(block: StreamBlock, generator: torch.Generator) -> None:
    mixer = block.mixer
    u_rows = mixer.in_proj.weight[: mixer.conv_weight.shape[1]]
    # before data is seen, a row's norm stands for its channel's range
    scale = smoothing_factors(u_rows.norm(dim=1), mixer.conv_weight.abs().amax((0, 2)))
    u_rows.div_(scale[:, None])
    mixer.conv_weight.mul_(scale[:, None])


def _smooth_step(block: StreamBlock, generator: torch.Generator) -> None:
    ssm = block.mixer.ssm
    rows = ssm.x_proj_weight[:, : ssm.splits[0]]
    scale = smoothing_factors(rows.norm(dim=2), ssm.dt_weight.abs().amax(1))
    rows.div_(scale[..., None])
    ssm.dt_weight.mul_(scale[:, None])


def _rotate_step(block: StreamBlock, generator: torch.Generator) -> None:
    ssm = block.mixer.ssm
    rank = ssm.splits[0]
    for weight, step in zip(ssm.x_proj_weight, ssm.dt_weight, strict=True):
        rotation = hadamard_rotation(rank, generator, weight.dtype).to(weight.device)
        weight[:rank] = rotation.T @ weight[:rank]
        step.copy_(step @ rotation)


def _smooth_states(block: StreamBlock, generator: torch.Generator) -> None:
    ssm = block.mixer.ssm
    rank, states, _ = ssm.splits
    b, c = ssm.x_proj_weight[:, rank : rank + states], ssm.x_proj_weight[:, rank + states :]
    scale = smoothing_factors(b.norm(dim=2), c.norm(dim=2)).clamp(max=100)
    b.div_(scale[..., None])
    c.mul_(scale[..., None])


REWRITINGS = {
    "norm": _fold_norm,
    "smooth_conv": _smooth_conv,
    "smooth_step": _smooth_step,
    "rotate_step": _rotate_step,
    "smooth_states": _smooth_states,
}


@torch.no_grad()
def rewrite(model: nn.Module, steps: Sequence[str] = tuple(REWRITINGS), *, seed: int = 0) -> nn.Module:
    """Rewrite the weights of a model of Mamba's mixers so that its function stays and its channels' ranges even out.

    In place, and only weights change, so the result is an ordinary checkpoint. "norm": the norm's weight goes into the
    projection behind it. "smooth_conv", "smooth_step", "smooth_states": scales between the projection and the
    convolution, between the two parts of the step size's projection, between B and C. "rotate_step": a rotation of the
    step size's low rank. Scales go by the weights, on the premise of tokens of unit variance, not by activations.

    Args:
        model: A plain model whose blocks hold `MambaMixer`s, such as Vim.
        steps: Names of rewritings, applied in this order.
        seed: Of the rotations.

    Returns:
        The model.

    Raises:
        ValueError: an unknown rewriting.
        TypeError: the model has no block of that kind, or "norm" meets a norm with a bias and a projection without.
    """
    for step in steps:
        if step not in REWRITINGS:
            raise ValueError(f"steps must be of {', '.join(REWRITINGS)}, got {step!r}")
    blocks = [m for m in model.modules() if isinstance(m, StreamBlock) and isinstance(m.mixer, MambaMixer)]
    if not blocks:
        raise TypeError(
            f"{type(model).__name__} has no blocks with Mamba's mixer, and rewritings of others are unknown"
        )
    if "norm" in steps and any(getattr(block.norm, "bias", None) is not None for block in blocks):
        raise TypeError("the norm has a bias, which the projection behind it cannot take; leave out the step 'norm'")
    generator = torch.Generator().manual_seed(seed)
    for step in steps:
        for block in blocks:
            REWRITINGS[step](block, generator)
    return model
