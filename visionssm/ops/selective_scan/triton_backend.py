"""The Triton kernels as a backend; they are imported by the first scan that needs them."""

from functools import cache
from importlib import import_module

from torch import Tensor

from ..triton_support import unavailable
from .backend import Backend
from .contract import Scan


@cache
def _kernels():
    return import_module(f"{__package__}.triton")


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `Backend` says."""
    return _kernels().forward(scan, save)


def backward(grad: Tensor, grad_last: Tensor | None, states: Tensor, scan: Scan) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    return _kernels().backward(grad, grad_last, states, scan)


def states_shape(scan: Scan) -> tuple[int, ...]:
    """As `Backend` says."""
    return _kernels().states_shape(scan)


BACKEND = Backend("triton", ("cuda",), unavailable, forward, backward, states_shape)
