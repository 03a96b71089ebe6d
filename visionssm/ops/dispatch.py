"""The choice among an operator's backends."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

_logger = logging.getLogger(__name__)
_told: set[tuple[str, str]] = set()


class Candidate(Protocol):
    """What the choice asks of a backend.

    Attributes:
        name: As `backend=` and VISIONSSM_BACKEND call it.
        devices: Types of device ("cuda", "cpu") on which it is taken unasked where it can run; None for all.
        unavailable: Why it cannot run on a type of device with inputs of a dtype: a clause that ends a sentence
            "the ... backend cannot run on ...: ", or None if it can.
        told_from: State updates of a call from which on it is said, once, that the backend was meant for the device but
            cannot run.
    """

    @property
    def name(self) -> str: ...

    @property
    def devices(self) -> tuple[str, ...] | None: ...

    @property
    def unavailable(self) -> Callable[[str, torch.dtype], str | None]: ...

    @property
    def told_from(self) -> int: ...


B = TypeVar("B", bound=Candidate)


def choose(
    operator: str,
    backends: Sequence[B],
    name: str | None,
    device: torch.device,
    dtype: torch.dtype,
    updates: float | None = None,
) -> B:
    """The backend asked for: by name, else by VISIONSSM_BACKEND, else the first that is meant for the device.

    Says once (logging) why a backend meant for the device is passed over.

    Args:
        operator: The public function.
        backends: Its backends, the preferred first.
        name: What the caller asked for, None or "" for nothing.
        device: Device of the inputs.
        dtype: Dtype of the input.
        updates: State updates of the call that will now run (see `Candidate.told_from`); None if none will, then
            nothing is said.

    Raises:
        ValueError: no backend has that name.
        RuntimeError: the backend asked for cannot run here.
    """
    forced = name or os.environ.get("VISIONSSM_BACKEND")
    if forced:
        backend = named(backends, forced, "backend" if name else "VISIONSSM_BACKEND")
        reason = backend.unavailable(device.type, dtype)
        if reason is not None:
            raise RuntimeError(
                f"the {forced} backend cannot run on {device}: {reason}; use backend='portable' or unset "
                "VISIONSSM_BACKEND"
            )
        return backend
    passed: list[tuple[B, str]] = []
    for backend in backends:
        if backend.devices is not None and device.type not in backend.devices:
            continue
        reason = backend.unavailable(device.type, dtype)
        if reason is None:
            for other, why in passed:
                if updates is not None and updates >= other.told_from and (operator, why) not in _told:
                    _told.add((operator, why))
                    _logger.warning(
                        "%s takes the %s backend on %s, not the %s one: %s",
                        operator,
                        backend.name,
                        device,
                        other.name,
                        why,
                    )
            return backend
        passed.append((backend, reason))
    raise RuntimeError(f"no backend of {operator} can run {dtype} on {device}")


def named(backends: Sequence[B], name: str, where: str) -> B:
    """The backend of a name.

    Raises:
        ValueError: there is none; the message says `where` the name stands.
    """
    for backend in backends:
        if backend.name == name:
            return backend
    raise ValueError(f"unknown {where} {name!r}; expected one of {', '.join(b.name for b in backends)}")
