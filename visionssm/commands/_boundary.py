"""Where the errors of all commands end: one sentence and an exit status; the traceback with `--debug`."""

import functools
import logging
import os
import sys
from collections.abc import Callable

from ..errors import UserError

Main = Callable[[list[str] | None], int]

# what a missing module belongs to
EXTRAS = {
    "matplotlib": "demo",
    "sklearn": "demo",
    "tensorboard": "demo",
    "skimage": "restoration",
    "torchmetrics": "multitask",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "mmengine": "openmmlab",
    "mmcv": "openmmlab",
    "mmdet": "openmmlab",
    "mmseg": "openmmlab",
    "torchao": "quantization",
    "webdataset": "data",
    "datasets": "data",
}


def bounded(main: Main, name: str | None = None) -> Main:
    """Make a command's `main` print what a user can repair as one line on standard error, and return 2.

    Ctrl-C returns 130. Anything else, which is a mistake of ours, keeps its traceback; `--debug` keeps them all.

    Args:
        main: From arguments to exit status.
        name: What the lines begin with; the name of its module when not given.
    """
    shown = name or main.__module__.rpartition(".")[2]

    @functools.wraps(main)
    def within(argv: list[str] | None = None) -> int:
        arguments = list(sys.argv[1:] if argv is None else argv)
        debug = "--debug" in arguments
        if debug:
            arguments.remove("--debug")
        logger = logging.getLogger("visionssm")
        level = logger.level
        try:
            return call(shown, lambda: main(arguments), debug)
        finally:
            logger.setLevel(level)  # which --quiet raises

    return within


def call(name: str, work: Callable[[], int], debug: bool = False) -> int:
    """Return what `work` returns, or the exit status of what it raises."""
    try:
        return work()
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"{name}: interrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:  # `| head` has seen enough; Python flushes again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        line = sentence(error)
        if debug or line is None:
            raise
        print(f"{name}: {line}", file=sys.stderr, flush=True)
        return 2


def sentence(error: Exception) -> str | None:
    """Return what to tell the user about an error, or None where it is not the user's."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("visionssm"):
        module = error.name.partition(".")[0]
        extra = EXTRAS.get(module)
        remedy = f"pip install 'visionssm[{extra}]'" if extra else f"install it, or name another module ({error})"
        return f"{module} is not installed: {remedy}"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return "out of memory: take a smaller --batch-size or --img-size, or --grad-checkpointing where there is one"
    if isinstance(error, OSError):
        reason = error.strerror or " ".join(str(error).split()) or type(error).__name__
        return f"{error.filename}: {reason}" if error.filename else reason
    return None
