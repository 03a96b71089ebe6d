"""The backends of the scan, the preferred first, and the choice among them."""

import logging
import os
from math import inf

import torch

from . import portable, reference, triton_backend
from .backend import Backend
from .contract import Scan
from .native import backend as native_backend

BACKENDS: tuple[Backend, ...] = (
    triton_backend.BACKEND,
    native_backend.BACKEND,
    portable.BACKEND,
    reference.BACKEND,
)

_logger = logging.getLogger(__name__)
_told: set[str] = set()


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
    return _named(name, "backend").unavailable(device, dtype)


def choose_backend(name: str | None, device: torch.device, dtype: torch.dtype, updates: float | None = None) -> Backend:
    """The backend asked for: by name, else by VISIONSSM_BACKEND, else the first that is meant for the device.

    Says once (logging) why a backend meant for the device is passed over.

    Args:
        name: What the caller asked for, None or "" for nothing.
        device: Device of the inputs.
        dtype: Dtype of the input u.
        updates: State updates of the scan that will now run (see `Backend.told_from`); None if none will, then nothing
            is said.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: the backend asked for cannot run here.
    """
    forced = name or os.environ.get("VISIONSSM_BACKEND")
    if forced:
        backend = _named(forced, "backend" if name else "VISIONSSM_BACKEND")
        reason = backend.unavailable(device.type, dtype)
        if reason is not None:
            raise RuntimeError(
                f"the {forced} backend cannot run on {device}: {reason}; use backend='portable' or unset "
                "VISIONSSM_BACKEND"
            )
        return backend
    passed: list[tuple[Backend, str]] = []
    for backend in BACKENDS:
        if backend.devices is not None and device.type not in backend.devices:
            continue
        reason = backend.unavailable(device.type, dtype)
        if reason is None:
            for other, reason in passed:
                if updates is not None and updates >= other.told_from and reason not in _told:
                    _told.add(reason)
                    _logger.warning(
                        "selective_scan takes the %s backend on %s, not the %s one: %s",
                        backend.name,
                        device,
                        other.name,
                        reason,
                    )
            return backend
        passed.append((backend, reason))
    raise RuntimeError(f"no backend can scan {dtype} on {device}")


def running_backend(scan: Scan, name: str, save: bool) -> Backend:
    """The backend for a scan that will now run, with states kept for a backward if `save`."""
    return choose_backend(name, scan.u.device, scan.u.dtype, inf if save else scan.updates)


def _named(name: str, where: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"unknown {where} {name!r}; expected one of {', '.join(b.name for b in BACKENDS)}")
