"""What the operators share in calling the library: its structs are blocks of memory with eight bytes a member."""

import ctypes
import os

import torch
from torch import Tensor

from . import loading

# as in types.h
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

# smaller scans are no reason to speak: state updates of a call, from which on it is said that there is no library
TOLD_FROM = int(os.environ.get("VISIONSSM_TOLD_FROM", 1_000_000))


def unavailable(device: str, dtype: torch.dtype) -> str | None:
    """Why the library cannot run on a type of device, or None if it can."""
    if device != "cpu":
        return "it runs on CPUs only"
    if dtype == torch.float64:
        return "it takes float32, bfloat16 and float16, not float64"
    return loading.MISSING


def call(name: str, *arguments) -> None:
    """Call visionssm_`name` of the library.

    Raises:
        MemoryError: it found no memory.
    """
    if getattr(loading.LIBRARY_LOADED, f"visionssm_{name}")(*arguments) != 0:
        raise MemoryError("the native scan found no memory for its buffers")


def members(*values: int):
    """A struct."""
    return (ctypes.c_int64 * len(values))(*values)


def pointer(x: Tensor | None) -> int:
    """A tensor's memory, 0 for None."""
    return 0 if x is None else x.data_ptr()


def contiguous_channels(x: Tensor) -> Tensor:
    """x, copied unless its last axis is contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def strides(x: Tensor, route_axis: int) -> tuple[int, ...]:
    """Strides in elements, 0 along a route axis that the routes share."""
    return tuple(0 if i == route_axis and x.shape[i] == 1 else s for i, s in enumerate(x.stride()))


def parameter(x: Tensor | None) -> tuple[int, ...]:
    """A `struct parameter` of x, (routes, channels[, states])."""
    if x is None:
        return (0,) * 4
    steps = strides(x, 0)
    return x.data_ptr(), *steps, *((0,) if len(steps) == 2 else ())
