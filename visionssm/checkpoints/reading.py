"""Reading checkpoint files safely, and taking the weights out of them."""

import contextlib
import os
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

# the order is timm's: averaged weights before raw ones
_NESTINGS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_SHOWN = 8


class _InertObject:
    """Stands in for an object pickled beside the weights; takes any content and keeps none."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class _InertMapping:
    """Stands in for a dict class; the unpickler fills exact dict types only, so it makes one."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()


def _stand_in(base: type, name: str) -> tuple[type, str]:
    return type(name.rsplit(".", 1)[-1], (base,), {}), name


# Training scripts pickle their configuration and their logs beside the weights. The unpickler is given these inert
# classes under the names in the file: nothing that the file names is imported or called.
_STAND_INS = [
    *(
        _stand_in(_InertMapping, name)
        for name in (
            "yacs.config.CfgNode",
            "mmcv.utils.config.ConfigDict",
            "mmengine.config.config.ConfigDict",
        )
    ),
    *(
        _stand_in(_InertObject, name)
        for name in (
            "argparse.Namespace",
            "builtins.getattr",  # by which the log of mmengine below names its own methods
            "mmengine.logging.history_buffer.HistoryBuffer",
            "numpy.core.multiarray._reconstruct",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray._reconstruct",
            "numpy._core.multiarray.scalar",
            "numpy.ndarray",
            "numpy.dtype",
        )
    ),
]


@contextlib.contextmanager
def inert_stand_ins() -> Iterator[None]:
    """Within it, `torch.load(weights_only=True)` reads files that pickle configs, replaced by inert objects."""
    with torch.serialization.safe_globals(_STAND_INS):
        yield


def check_checkpoint_file(path: str | os.PathLike) -> None:
    """Check that a file can be a checkpoint, before a model is built for it.

    Raises:
        CheckpointError: the file is missing, truncated, no checkpoint, or pickles objects that are not allowed.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"no checkpoint file at {str(path)!r}")
    with open(path, "rb") as file:
        head = file.read(9)
    if str(path).endswith(".safetensors"):
        _check_safetensors(path, head)
    elif head.startswith(b"PK"):
        _check_torch_zip(path)
    elif not head.startswith(b"\x80"):  # protocol byte of the pickles that PyTorch wrote before its zip format
        raise CheckpointError(
            f"{str(path)!r} is no checkpoint: expected a file written by torch.save or safetensors, "
            f"found {os.path.getsize(path)} bytes that begin with {head!r}"
        )


def _check_safetensors(path, head: bytes) -> None:
    size = os.path.getsize(path)
    header = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:9] != b"{":
        raise CheckpointError(f"{str(path)!r} is no safetensors file")
    if 8 + header > size:
        raise CheckpointError(f"{str(path)!r} is truncated: its header needs {8 + header} bytes, the file has {size}")


def _check_torch_zip(path) -> None:
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{str(path)!r} is truncated: it begins like a file of torch.save but its end is missing")
    with inert_stand_ins():
        try:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{str(path)!r} is a zip archive but no file of torch.save: {error}") from error
    if unknown:
        raise CheckpointError(
            f"{str(path)!r} pickles objects beside its tensors that are not on the list of harmless ones: "
            f"{', '.join(sorted(unknown))}; keep only its state dict (where the file is trusted) and load that"
        )


def unwrap(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Take the weights out of a training checkpoint's nesting and strip the prefixes of wrapping modules.

    Entries under "model_ema", "ema", "state_dict_ema" are preferred, then "state_dict", "model".

    Raises:
        CheckpointError: there are no tensors.
    """
    while True:
        inner = next((state_dict[k] for k in _NESTINGS if isinstance(state_dict.get(k), Mapping)), None)
        if inner is None:
            break
        state_dict = inner
    if not any(isinstance(v, Tensor) for v in state_dict.values()):
        found = ", ".join(list(map(str, state_dict))[:_SHOWN]) or "nothing"
        raise CheckpointError(f"the checkpoint holds no tensors; expected a state dict, found: {found}")
    out = {}
    for name, value in state_dict.items():
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        out[name] = value
    return out
