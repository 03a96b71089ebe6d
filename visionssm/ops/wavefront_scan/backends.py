"""The backends of the wavefront scan, the preferred first, and the choice among them."""

from math import inf

import torch

from ..dispatch import choose
from . import native_backend, portable, reference, triton_backend
from .backend import Backend
from .contract import Wavefront

BACKENDS: tuple[Backend, ...] = (
    triton_backend.BACKEND,
    native_backend.BACKEND,
    portable.BACKEND,
    reference.BACKEND,
)


def choose_backend(name: str | None, device: torch.device, dtype: torch.dtype, updates: float | None = None) -> Backend:
    """The backend asked for or meant for the device, see `visionssm.ops.dispatch.choose`; dtype is x's."""
    return choose("wavefront_scan", BACKENDS, name, device, dtype, updates)


def running_backend(scan: Wavefront, name: str, save: bool) -> Backend:
    """The backend for a scan that will now run, with states kept for a backward if `save`."""
    return choose_backend(name, scan.x.device, scan.x.dtype, inf if save else scan.updates)
