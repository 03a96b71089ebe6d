"""Reading what mmengine saves of a training without running what a pickle says.

Beside weights a checkpoint of mmengine has the histories of its log. `torch.load` reads no such classes by itself: the
original mmengine cannot resume then, and the fork reads the file once more, without care.
"""

import pickle

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray

_MULTIARRAY = ("numpy._core.multiarray", "numpy.core.multiarray")  # before numpy 2 by the second name


def _get_statistic(owner: type, name: str):
    """In the place of getattr, by which a history names its methods."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise pickle.UnpicklingError(f"a checkpoint of a training has no {getattr(owner, '__name__', owner)}.{name}")
    return getattr(owner, name)


def histories_allowed() -> torch.serialization.safe_globals:
    """Within it, `torch.load(weights_only=True)` reads histories, of numbers and arrays of numbers."""
    arrays = [
        (getattr(multiarray, kind), f"{module}.{kind}") for module in _MULTIARRAY for kind in ("_reconstruct", "scalar")
    ]
    numbers = [type(np.dtype(kind)) for kind in ("float16", "float32", "float64", "int32", "int64", "bool")]
    return torch.serialization.safe_globals(
        [HistoryBuffer, (_get_statistic, "builtins.getattr"), np.ndarray, np.dtype, *arrays, *numbers]
    )
