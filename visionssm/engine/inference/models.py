"""Models by name, with errors that help."""

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from urllib.error import URLError

import timm
import torch
from timm.models import get_pretrained_cfg, is_model, list_models, list_pretrained

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


def is_network_failure(error: BaseException | None) -> bool:
    """Return whether an error, or what it follows from, is one of a connection, of whatever library."""
    while error is not None:
        module = type(error).__module__.partition(".")[0]
        if isinstance(error, (URLError, ConnectionError, TimeoutError)) or module in ("httpx", "requests", "urllib3"):
            return True
        if module == "huggingface_hub":
            return True
        error = error.__cause__ or error.__context__
    return False


def no_weights(architecture: str, name: str, error: Exception) -> str:
    """Return a sentence about weights that could not be downloaded: from where, where to, and how to do without."""
    cfg = get_pretrained_cfg(name, allow_unregistered=False)
    source = (cfg.url or (f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else None)) if cfg else None
    target = Path(torch.hub.get_dir()) / "checkpoints"
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"the weights of {architecture} cannot be downloaded from {source} ({reason}); fetch the file elsewhere and "
        f"put it into {target}, or name it: --pretrained-path FILE in train, --checkpoint FILE in other commands"
    )


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
    except Exception as error:
        if kwargs.get("pretrained") and is_network_failure(error):
            raise UserError(no_weights(architecture, name, error)) from error
        if not isinstance(error, (TypeError, ValueError, KeyError, RuntimeError, AssertionError, OSError)):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"model {name!r} cannot be built: {message}") from error
