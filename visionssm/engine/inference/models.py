"""Models by name, with errors that help."""

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import timm
import torch
from timm.models import is_model, list_models, list_pretrained

from ... import models  # noqa: F401  registers the models with timm
from ...errors import UserError, nearest


def import_modules(names: Sequence[str] | None) -> None:
    """Import modules that a run registered models, scan orders or devices by, from the working directory too.

    Raises:
        UserError: One cannot be imported.
    """
    for name in names or ():
        if "" not in sys.path:
            sys.path.insert(0, "")
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"module {name!r}, which the run imported, cannot be imported: {error}; "
                "call from the folder that holds it"
            ) from error


def autocast(device: torch.device, dtype: str | None) -> Callable[[], AbstractContextManager]:
    """Return a factory of the forward pass's precision context.

    Args:
        device: Where the forward pass runs.
        dtype: Lower precision, "float16" or "bfloat16"; None for that of the weights.
    """
    return partial(torch.autocast, device.type, dtype=getattr(torch, dtype)) if dtype else nullcontext


def expand_names(patterns: Sequence[str], pretrained: bool = False) -> list[str]:
    """Return the models that names and patterns such as `vmamba_*` mean, each once.

    Args:
        patterns: Names and patterns.
        pretrained: Patterns mean the models with published weights.

    Raises:
        UserError: A pattern matches nothing.
    """
    names: list[str] = []
    for pattern in patterns:
        found = [pattern]
        if any(char in pattern for char in "*?["):
            found = list_pretrained(pattern) if pretrained else list_models(pattern)
        if not found:
            raise UserError(
                f"no {'pretrained ' if pretrained else ''}model matches {pattern!r}"
                + nearest(pattern.strip("*"), list_models())
            )
        names += [name for name in found if name not in names]
    return names


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
