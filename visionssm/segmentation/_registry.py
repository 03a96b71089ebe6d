"""Names of segmentation models."""

from os import PathLike
from typing import Any

import torch

from .._registry import Registry
from ._base import SegmentationModel

_registry = Registry[SegmentationModel]("segmentation")
register = _registry.register


def list_models(filter: str = "*") -> list[str]:
    """Sorted names of the segmentation models that match a shell-style pattern."""
    return _registry.list_models(filter)


def create_model(
    name: str,
    *,
    checkpoint: str | PathLike | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> SegmentationModel:
    """Build a segmentation model.

    Args:
        name: One of `list_models`.
        checkpoint: File to fill it from, of the authors or of our own; completely, or not at all.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **kwargs: Arguments of the model's class, `num_classes` and `in_chans` among them.

    Returns:
        A module from images (b, c, h, w), or volumes (b, c, d, h, w), to logits of the same size.

    Raises:
        CheckpointError: the file does not fill the model, or is none.
        TypeError: the model has no such argument.
        ValueError: an unknown name, or an argument out of its range.
    """
    return _registry.create(name, checkpoint, device, dtype, **kwargs)
