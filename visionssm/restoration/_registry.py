"""Names of restoration models."""

from os import PathLike
from typing import Any

import torch

from .._registry import Registry
from ._base import RestorationModel

_registry = Registry[RestorationModel]("restoration")
register = _registry.register


def list_models(filter: str = "*") -> list[str]:
    """Sorted names of the restoration models that match a shell-style pattern."""
    return _registry.list_models(filter)


def create_model(
    name: str,
    *,
    checkpoint: str | PathLike | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> RestorationModel:
    """Build a restoration model.

    Args:
        name: One of `list_models`.
        checkpoint: File to fill it from, of the authors or of our own; completely, or not at all.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **kwargs: Arguments of the model's class, `in_chans` among them, and `scale` where the model enlarges.

    Returns:
        A module from images (b, c, h, w) with values in [0, 1] to images (b, c, scale h, scale w).

    Raises:
        CheckpointError: the file does not fill the model, or is none.
        TypeError: the model has no such argument.
        ValueError: an unknown name, or an argument out of its range.
    """
    return _registry.create(name, checkpoint, device, dtype, **kwargs)
