"""Names of models that are not timm's, whose registry expects classifiers: one registry for each kind of system."""

import fnmatch
import inspect
from collections.abc import Callable
from os import PathLike
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from .checkpoints import load, read
from .errors import nearest

Model = TypeVar("Model", bound=nn.Module)


class Registry(Generic[Model]):
    """Model classes by name, each with the arguments that the name stands for.

    Args:
        kind: What the models are, for messages: "segmentation".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._models: dict[str, tuple[type[Model], dict[str, Any]]] = {}

    def register(self, name: str, **args: Any) -> Callable[[type[Model]], type[Model]]:
        """Decorator of a model class: give it a name, with the arguments that the name stands for."""

        def add(cls: type[Model]) -> type[Model]:
            self._models[name] = cls, args
            return cls

        return add

    def list_models(self, filter: str = "*") -> list[str]:
        """Sorted names of the models that match a shell-style pattern."""
        return sorted(name for name in self._models if fnmatch.fnmatch(name, filter))

    def create(
        self,
        name: str,
        checkpoint: str | PathLike | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Model:
        """Build a model.

        Args:
            name: One of `list_models`.
            checkpoint: File to fill it from, of the authors or of our own; completely, or not at all.
            device: Device of the parameters.
            dtype: Dtype of the parameters.
            **kwargs: Arguments of the model's class, above those of the name.

        Raises:
            CheckpointError: the file does not fill the model, or is none.
            TypeError: the model has no such argument.
            ValueError: an unknown name, or an argument out of its range.
        """
        if name not in self._models:
            raise ValueError(f"unknown {self.kind} model {name!r}{nearest(name, self._models)}; see list_models()")
        cls, args = self._models[name]
        known = [p for p in inspect.signature(cls.__init__).parameters if p != "self"]
        for key in kwargs:
            if key not in known:
                raise TypeError(f"{name} has no argument {key!r}{nearest(key, known)}")
        with torch.device(device or torch.get_default_device()):
            model: Any = cls(**{**args, **kwargs}).to(dtype=dtype)
        model.pretrained_cfg = {"architecture": name, "classifier": getattr(model, "classifier", ())}
        if checkpoint is not None:
            load(read(checkpoint), model)
        return model
