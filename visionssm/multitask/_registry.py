"""Names of multi-task models."""

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch

from ._model import MTMamba, registry


def list_models(filter: str = "*") -> list[str]:
    """Sorted names of the multi-task models that match a shell-style pattern."""
    return registry.list_models(filter)


def create_model(
    name: str,
    *,
    tasks: Mapping[str, int],
    backbone: str = "vmamba_tiny_s1l8",
    checkpoint: str | PathLike | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **kwargs: Any,
) -> MTMamba:
    """Build a multi-task model over a backbone of timm.

    Args:
        name: One of `list_models`.
        tasks: Output channels by task: semseg, depth, human_parts, sal, normals, edge, or others.
        backbone: Name of a timm model whose maps halve from one to the next.
        checkpoint: File of our own to fill it from; completely, or not at all.
        device: Device of the parameters.
        dtype: Dtype of the parameters.
        **kwargs: Further arguments of `MTMamba`, `backbone_weights` and `in_chans` among them.

    Returns:
        A module from images (b, c, h, w) to outputs (b, channels of the task, h, w) by task.

    Raises:
        CheckpointError: the file does not fill the model, or is none.
        TypeError: the model has no such argument.
        ValueError: an unknown name, or an argument out of its range.
    """
    return registry.create(name, checkpoint, device, dtype, tasks=tasks, backbone=backbone, **kwargs)
