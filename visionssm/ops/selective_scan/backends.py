"""The backends of the scan, the preferred first, and the choice among them."""

from math import inf

import torch

from ..dispatch import choose, named
from . import native_backend, portable, reference, triton_backend
from .backend import Backend
from .contract import Scan

BACKENDS: tuple[Backend, ...] = (
    triton_backend.BACKEND,
    native_backend.BACKEND,
    portable.BACKEND,
    reference.BACKEND,
)


def available_backends() -> list[str]:
    """The backends that can run on this machine, on its GPU if it has one; the preferred one first."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [backend.name for backend in BACKENDS if backend.unavailable(device, torch.float32) is None]


def backend_unavailable(name: str, device: str = "cuda", dtype: torch.dtype = torch.float32) -> str | None:
    """Why a backend cannot run, or None if it can.

    Args:
        name: The backend.
        device: Type of device: "cuda", "cpu".
        dtype: Dtype of the input.

    Raises:
        ValueError: no backend has that name.
    """
    return named(BACKENDS, name, "backend").unavailable(device, dtype)


def choose_backend(name: str | None, device: torch.device, dtype: torch.dtype, updates: float | None = None) -> Backend:
    """The backend asked for or meant for the device, see `visionssm.ops.dispatch.choose`; dtype is u's."""
    return choose("selective_scan", BACKENDS, name, device, dtype, updates)


def running_backend(scan: Scan, name: str, save: bool) -> Backend:
    """The backend for a scan that will now run, with states kept for a backward if `save`."""
    return choose_backend(name, scan.u.device, scan.u.dtype, inf if save else scan.updates)
