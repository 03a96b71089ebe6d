"""What the processes of `launching` do; imported by the process that forks them."""

import os
import sys
import traceback
from importlib import import_module
from pathlib import Path

import torch


def run(module: str, function: str, argv: list[str], console: str, environment: dict[str, str]) -> None:
    """Call a function with a command line, all it prints to a file; the process ends with what it returns, or 99."""
    code = 99
    try:
        file = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1)
        os.environ.update(environment)
        torch.set_num_threads(1)
        sys.path.insert(
            0, str(Path(__file__).parent)
        )  # this folder's conftest, not one of the others that pytest added
        code = getattr(import_module(module), function)(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
