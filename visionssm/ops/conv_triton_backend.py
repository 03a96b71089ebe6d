"""The causal convolution's Triton kernels as a backend; they are imported by the first call that needs them."""

from importlib import import_module

import torch
from torch import Tensor

from .conv_backend import Conv, ConvBackend
from .selective_scan import triton_backend


def unavailable(device: str, dtype: torch.dtype) -> str | None:
    """As `ConvBackend` says; where the scan's kernels can run, so can these."""
    return triton_backend.unavailable(device, dtype)


def _kernels():
    return import_module(f"{__package__}.conv_triton")


def forward(conv: Conv) -> Tensor:
    """As `ConvBackend` says."""
    return _kernels().forward(conv)


def backward(grad: Tensor, conv: Conv) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `ConvBackend` says."""
    return _kernels().backward(grad, conv)


BACKEND = ConvBackend("triton", ("cuda",), unavailable, forward, backward)
