"""The Triton kernels as a backend; they are imported by the first scan that needs them."""

from importlib import import_module

from torch import Tensor

from ..triton_support import unavailable
from .backend import Backend
from .contract import Wavefront


def _kernels():
    return import_module(f"{__package__}.triton")


def forward(scan: Wavefront, save: bool) -> tuple[Tensor, Tensor | None]:
    """As `Backend` says."""
    return _kernels().forward(scan, save)


def backward(grad: Tensor, states: Tensor, scan: Wavefront) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    return _kernels().backward(grad, states, scan)


def states_shape(scan: Wavefront) -> tuple[int, ...]:
    """As `Backend` says."""
    return _kernels().states_shape(scan)


BACKEND = Backend("triton", ("cuda",), unavailable, forward, backward, states_shape)
