"""Vision state-space models in one place: importing this package registers them with timm."""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .engine.inference.classifier import load_classifier
    from .models import list_models

__all__ = ["__version__", "list_models", "load_classifier"]


def __getattr__(name: str) -> Any:
    if name in ("models", "list_models"):
        models = importlib.import_module(f"{__name__}.models")  # `from . import` would ask here again
        return models if name == "models" else models.list_models
    if name == "load_classifier":
        from .engine.inference.classifier import load_classifier

        return load_classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _registered_later() -> bool:
    """Whether this is the command line, whose help must not wait for torch and timm: it registers before it works.

    The command is a module of this package, so this file runs before anything of it could say so; it is left to look at
    how the program was called. The other ways were worse: a second top-level package for the command would not serve
    `python -m visionssm`, and a hook that waits for timm would change what every program imports, for a help's sake.
    Whatever the answer, `visionssm.list_models` and all else of the package register the models when asked for.
    """
    program, *rest = getattr(sys, "argv", None) or [""]
    if program == "-m":  # which it is until the module is found
        return any(pair == ("-m", "visionssm") for pair in zip(sys.orig_argv, sys.orig_argv[1:], strict=False))
    place = Path(program)
    if place.stem == "visionssm":
        return place.suffix in ("", ".exe")
    tools = Path(__file__).resolve().parents[1] / "tools"
    return place.suffix == ".py" and bool({"-h", "--help"} & set(rest)) and place.resolve().parent == tools


if not _registered_later():
    from .models import list_models
