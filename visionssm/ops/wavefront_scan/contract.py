"""What a wavefront scan is given: checks, and one form that every implementation reads."""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_STATES = 64
_INPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Wavefront(NamedTuple):
    """One checked call. b batch, H rows, W columns, d channels, N states."""

    x: Tensor  # (b, H, W, d)
    delta_top: Tensor  # (b, H, W, d)
    delta_left: Tensor  # (b, H, W, d)
    A_top: Tensor  # (d, N)
    A_left: Tensor  # (d, N)
    B_top: Tensor  # (b, H, W, N)
    B_left: Tensor  # (b, H, W, N)
    C: Tensor  # (b, H, W, N)
    D: Tensor | None  # (d,)

    def computed(self) -> "Wavefront":
        """The same in the dtype that is computed in."""
        return Wavefront._make(None if t is None else t.to(self.compute_dtype) for t in self)

    @property
    def states(self) -> int:
        return self.A_top.shape[1]

    @property
    def updates(self) -> int:
        """Number of times that a state is updated."""
        return self.x.numel() * self.states

    @property
    def compute_dtype(self) -> torch.dtype:
        return torch.float64 if self.x.dtype == torch.float64 else torch.float32


def check(scan: Wavefront) -> None:
    """Check the arguments of `wavefront_scan`."""
    for name, t in scan._asdict().items():
        if not isinstance(t, Tensor) and not (name == "D" and t is None):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if scan.x.ndim != 4 or 0 in scan.x.shape[1:]:
        raise ValueError(f"x must be (b, H, W, d) with H, W and d at least 1, got shape {tuple(scan.x.shape)}")
    b, height, width, d = scan.x.shape
    if scan.A_top.ndim != 2 or not 1 <= scan.A_top.shape[1] <= MAX_STATES:
        raise ValueError(
            f"A_top must be (channels, states) with 1 to {MAX_STATES} states, got shape {tuple(scan.A_top.shape)}"
        )
    n = scan.states
    shapes = dict(A_top=(d, n), A_left=(d, n), D=(d,), delta_top=scan.x.shape, delta_left=scan.x.shape)
    for name, t in scan._asdict().items():
        if t is None:
            continue
        if t.device != scan.x.device:
            raise ValueError(f"{name} is on {t.device} but x is on {scan.x.device}; all tensors must share one device")
        expected = shapes.get(name, scan.x.shape if name == "x" else (b, height, width, n))
        if t.shape != expected:
            raise ValueError(f"{name} has shape {tuple(t.shape)}, expected {tuple(expected)}")
        if name in ("A_top", "A_left", "D"):
            if t.dtype != scan.compute_dtype:
                state = scan.compute_dtype
                raise TypeError(f"{name} must be {state} (the state's dtype), got {t.dtype}; pass {name}.to({state})")
        elif t.dtype not in _INPUT_DTYPES:
            raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {t.dtype}")
        elif (t.dtype == torch.float64) != (scan.x.dtype == torch.float64):
            raise TypeError(f"{name} is {t.dtype} but x is {scan.x.dtype}; float64 does not mix with other dtypes")
