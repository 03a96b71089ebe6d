"""What a state-space duality is given: checks, sizes, and the dtype of its products."""

from typing import NamedTuple

import torch
from torch import Tensor

_INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Ssd(NamedTuple):
    """One checked call. b batch, L tokens, h heads of p channels, g groups of heads that share B and C, n states."""

    x: Tensor  # (b, L, h, p)
    delta: Tensor  # (b, L, h), before bias and softplus
    A: Tensor  # (h)
    B: Tensor  # (b, L, g, n)
    C: Tensor  # (b, L, g, n)
    D: Tensor | None  # (h)
    delta_bias: Tensor | None  # (h)

    @property
    def state_dtype(self) -> torch.dtype:
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32

    def step_size(self) -> Tensor:
        """softplus(delta + delta_bias) in the state's dtype, (b, L, h)."""
        delta = self.delta.to(self.state_dtype)
        return torch.nn.functional.softplus(delta if self.delta_bias is None else delta + self.delta_bias)


def checked(x, delta, A, B, C, D=None, delta_bias=None) -> Ssd:
    """Check the arguments of `causal_ssd` or `noncausal_ssd`; B and C get their axis of groups.

    Raises:
        TypeError: something is no tensor, or has a wrong dtype.
        ValueError: a shape or a device is wrong.
    """
    given = dict(x=x, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    check_tensors(given, optional=("D", "delta_bias"), sequences=("x", "delta", "B", "C"))
    if x.ndim != 4:
        raise ValueError(f"x must be (batch, tokens, heads, channels of a head), got shape {tuple(x.shape)}")
    b, length, h, _ = x.shape
    if 0 in x.shape[1:]:
        raise ValueError(f"tokens, heads and channels must be at least 1, got x of shape {tuple(x.shape)}")
    check_shape("delta", delta, (b, length, h), "(batch, tokens, heads)")
    for name in ("A", "D", "delta_bias"):
        if given[name] is not None:
            check_shape(name, given[name], (h,), "(heads)")
    B, C = (grouped(name, given[name], b, length, h) for name in ("B", "C"))
    if B.shape != C.shape:
        raise ValueError(f"B and C must have the same shape, got {tuple(B.shape)} and {tuple(C.shape)}")
    return Ssd(x, delta, A, B, C, D, delta_bias)


def check_tensors(given: dict, optional: tuple[str, ...], sequences: tuple[str, ...]) -> None:
    """Check types, devices and dtypes: of `sequences` as the first tensor's, of the rest as the state's."""
    first, x = next(iter(given.items()))
    for name, t in given.items():
        if not isinstance(t, Tensor) and not (t is None and name in optional):
            raise TypeError(f"{name} must be a tensor{' or None' * (name in optional)}, got {type(t).__name__}")
        if t is not None and t.device != x.device:
            raise ValueError(f"{name} is on {t.device} but {first} is on {x.device}; all must share one device")
    double = x.dtype == torch.float64
    state = torch.float64 if double else torch.float32
    for name, t in given.items():
        if t is None:
            continue
        if name in sequences:
            if t.dtype not in _INPUT_DTYPES:
                raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {t.dtype}")
            if (t.dtype == torch.float64) != double:
                raise TypeError(f"{name} is {t.dtype} but {first} is {x.dtype}; float64 does not mix with others")
        elif t.dtype != state:
            raise TypeError(f"{name} must be {state} (the state's dtype), got {t.dtype}; pass {name}.to({state})")


def check_shape(name: str, t: Tensor, expected: tuple[int, ...], axes: str) -> None:
    """Check one shape; the message says what the axes mean."""
    if tuple(t.shape) != expected:
        raise ValueError(f"{name} must be {axes} = {expected}, got {tuple(t.shape)}")


def grouped(name: str, t: Tensor, batch: int, length: int, heads: int) -> Tensor:
    """B or C as (b, L, g, n); one of three axes has one group."""
    t = t.unsqueeze(2) if t.ndim == 3 else t
    if t.ndim != 4 or tuple(t.shape[:2]) != (batch, length) or 0 in t.shape[2:]:
        raise ValueError(
            f"{name} must be (batch, tokens, [groups,] states) with batch and tokens {(batch, length)}, "
            f"got {tuple(t.shape)}"
        )
    if heads % t.shape[2]:
        raise ValueError(f"{name} has {t.shape[2]} groups, which do not divide the {heads} heads of x")
    return t


def product_dtype(*operands: Tensor) -> torch.dtype:
    """The dtype in which sequences are multiplied: float16 would overflow, as states sum over all tokens."""
    dtype = operands[0].dtype
    for t in operands[1:]:
        dtype = torch.promote_types(dtype, t.dtype)
    return torch.float32 if dtype == torch.float16 else dtype
