"""Models by name, with errors that help."""

import importlib
from collections.abc import Sequence

import timm
import torch
from timm.models import is_model, list_models

from ... import models  # noqa: F401  registers the models with timm
from ...errors import UserError, nearest


def import_modules(names: Sequence[str] | None) -> None:
    """Import modules that register further models or devices."""
    for name in names or ():
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--device-modules: {name!r} cannot be imported: {error}") from error


def create_model(name: str, **kwargs) -> torch.nn.Module:
    """Create a timm model.

    Args:
        name: Model name, with or without a weight tag.
        kwargs: Arguments of `timm.create_model` and of the model; None means not given.

    Raises:
        UserError: There is no such model (the nearest names are offered), or its constructor refuses an argument.
    """
    architecture = name.split(".")[0]
    if not is_model(architecture) and ":" not in name:
        raise UserError(f"there is no model {architecture!r}" + nearest(architecture, list_models()))
    try:
        return timm.create_model(name, **kwargs)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError, OSError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"model {name!r} cannot be built: {message}") from error
