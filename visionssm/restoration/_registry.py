"""Names of restoration models. They are not timm's: timm's registry expects classifiers."""

import fnmatch
import inspect
from collections.abc import Callable
from os import PathLike
from typing import Any

import torch

from ..checkpoints import load, read
from ..errors import nearest
from ._base import RestorationModel

_models: dict[str, tuple[type[RestorationModel], dict[str, Any]]] = {}


def register(name: str, **args: Any) -> Callable[[type[RestorationModel]], type[RestorationModel]]:
    """Decorator of a model class: give it a name, with the arguments that the name stands for."""

    def add(cls: type[RestorationModel]) -> type[RestorationModel]:
        _models[name] = cls, args
        return cls

    return add


def list_models(filter: str = "*") -> list[str]:
    """Sorted names of the restoration models that match a shell-style pattern."""
    return sorted(name for name in _models if fnmatch.fnmatch(name, filter))


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
    if name not in _models:
        raise ValueError(f"unknown restoration model {name!r}{nearest(name, _models)}; see list_models()")
    cls, args = _models[name]
    known = [p for p in inspect.signature(cls.__init__).parameters if p != "self"]
    for key in kwargs:
        if key not in known:
            raise TypeError(f"{name} has no argument {key!r}{nearest(key, known)}")
    with torch.device(device or torch.get_default_device()):
        model = cls(**{**args, **kwargs}).to(dtype=dtype)
    model.pretrained_cfg = {"architecture": name}
    if checkpoint is not None:
        load(read(checkpoint), model)
    return model
