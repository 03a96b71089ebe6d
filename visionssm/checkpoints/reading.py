"""Reading checkpoint files safely, and the one rule which of their weights are meant."""

import argparse
import contextlib
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

WEIGHTS = ("auto", "raw", "ema")
RUN_FILES = ("model_best.pth.tar", "last.pth.tar")  # of a training's folder
RUN_STATE = "run"  # entry of `task_state` by which a checkpoint is known as one of this package's training
# "network_weights" as nnU-Net writes it, "params" and "params_ema" as BasicSR, "module" as DeepSpeed
_RAW = ("state_dict", "model", "net", "network_weights", "params", "module")
_AVERAGED = ("state_dict_ema", "model_ema", "ema", "ema_model", "net_E", "params_ema")
_WRAPPERS = ("module.", "_orig_mod.")
_COUNTERS = re.compile(r"(^|\.)total_(ops|params)$")  # that thop leaves in every module whose operations it counted
_SHOWN = 8

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A file that was read.

    Attributes:
        path: The file.
        weights: Its weights by name, out of their nesting, without prefixes of wrapping modules.
        content: All that the file holds.
    """

    path: Path
    weights: dict[str, Tensor]
    content: dict[str, Any]

    @property
    def run(self) -> dict[str, Any]:
        """State of the training run, empty unless this package's training wrote the file."""
        return run_state(self.content)

    @property
    def options(self) -> dict[str, Any]:
        """Options of the training run, the name of the model among them.

        Empty unless this package's training wrote the file: what other programs store as `args` names things their way.
        """
        args = self.content.get("args") if self.run else None
        return vars(args) if isinstance(args, argparse.Namespace) else {}

    @property
    def removed(self) -> tuple[str, ...]:
        """Paths of the parts that the model of the file lacks, as it says itself (see `models.removable`)."""
        said = self.content.get("removed") or (self.options.get("model_kwargs") or {}).get("removed") or ()
        return tuple(map(str, said)) if isinstance(said, list | tuple) else ()


def of_run(path: str | os.PathLike) -> Path:
    """Return the checkpoint that a run's folder stands for, its best one, else its last; a file stands for itself.

    Raises:
        CheckpointError: a folder has neither.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    found = next((file for name in RUN_FILES if (file := path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"folder {path} is none of a run: it holds neither {' nor '.join(RUN_FILES)}")
    _logger.info("checkpoint: %s", found)
    return found


def read(path: str | os.PathLike, weights: str = "auto") -> Checkpoint:
    """Read a file of torch.save or safetensors; nothing in it is executed.

    **Which weights**: a checkpoint may hold raw and averaged ones (EMA; `state_dict_ema`, `model_ema`, `ema`,
    `ema_model` or `net_E` beside `state_dict`, `model` or `net`). "auto" takes the averaged ones where there are any,
    else the raw ones: by them a run with averaging chooses its best epoch, and timm's `create_model` does the same.
    Every way from a file to a model follows this rule: `timm.create_model`, the tools, the backbone for OpenMMLab, the
    converter.

    Args:
        path: `.pth`, `.pth.tar`, `.pt`, `.ckpt`, `.bin` or `.safetensors`; or a run's folder, which means its best.
        weights: "auto"; or "raw" or "ema" for these alone.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, would need code that is not allowed, or has no
            weights of the kind.
        ValueError: `weights` is none of the three.
    """
    path = of_run(path)
    content = read_content(path)
    try:
        return Checkpoint(path, unwrap(content, weights), content)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from error


def unwrap(content: Mapping[str, Any], weights: str = "auto") -> dict[str, Any]:
    """Take the weights out of a checkpoint's nesting, by the rule of `read`, without what wrapping and counting added.

    Prefixes of wrapping modules are stripped, and the counters that a profiler left among the buffers are left out.

    Raises:
        CheckpointError: there are no tensors, or no weights of the kind.
        ValueError: `weights` is none of "auto", "raw", "ema".
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {weights!r}")
    averaged, inner = False, content
    while True:
        entries = [k for k in (*_AVERAGED, *_RAW) if isinstance(inner.get(k), Mapping)]
        if weights == "raw":
            entries = [k for k in entries if k in _RAW] or entries
        if not entries:
            break
        averaged |= entries[0] in _AVERAGED
        if averaged and weights == "raw":
            raise CheckpointError(f"it has averaged weights only ({entries[0]}), no raw ones")
        if averaged and weights == "auto" and len(entries) > 1:
            _logger.info("taking the averaged weights (%s), not the raw ones", entries[0])
        inner = inner[entries[0]]
    if weights == "ema" and not averaged:
        raise CheckpointError(f"it has no averaged weights ({', '.join(_AVERAGED)}); was it trained with averaging?")
    if not any(isinstance(value, Tensor) for value in inner.values()):
        found = ", ".join(list(map(str, inner))[:_SHOWN]) or "nothing"
        raise CheckpointError(f"it holds no tensors; expected a state dict, found: {found}")
    out = {}
    for name, value in inner.items():
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        if not _COUNTERS.search(name):
            out[name] = value
    return out


def run_state(content: Mapping[str, Any]) -> dict[str, Any]:
    """State of the training run in a checkpoint's content, empty unless this package's training wrote it."""
    task = content.get("task_state")
    state = task.get(RUN_STATE) if isinstance(task, Mapping) else None
    return state if isinstance(state, dict) else {}


def read_content(path: str | os.PathLike, mmap: bool = False) -> dict[str, Any]:
    """Read all that a checkpoint holds, without executing anything in it.

    Configs, logs and arrays pickled beside the weights become inert objects; `argparse.Namespace` stays one. A file of
    safetensors gives its tensors.

    Args:
        path: The file.
        mmap: Map the tensors instead of reading them, where the format allows it.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint, or would need code that is not allowed.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"checkpoint {path} is a folder; of a sharded training's tools/consolidate.py makes a file"
        )
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    size = path.stat().st_size
    damaged = f"checkpoint {path} is damaged or incomplete ({size} bytes)"
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        except SafetensorError as error:
            raise CheckpointError(f"{damaged}, truncated or no safetensors file: {error}") from error
    with open(path, "rb") as file:
        head = file.read(9)
    zipped = head.startswith(b"PK")
    if not zipped and not head.startswith(b"\x80"):  # protocol byte of the pickles PyTorch wrote before its zip format
        raise CheckpointError(
            f"{str(path)!r} is no checkpoint: expected a file written by torch.save or safetensors, "
            f"found {size} bytes that begin with {head!r}"
        )
    if zipped and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{damaged}: truncated, its end is missing")
    with inert_stand_ins():
        try:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path)) if zipped else []
            if unknown:
                raise CheckpointError(_unsafe(path, ", ".join(sorted(unknown))))
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
        except CheckpointError:
            raise
        except Exception as error:  # torch raises pickle, zip, runtime, index and EOF errors for damaged files
            foreign = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
            if foreign:
                raise CheckpointError(_unsafe(path, foreign[1])) from error
            raise CheckpointError(f"{damaged}: it is not a readable file of torch.save") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, expected a dictionary of weights")
    return content


def _unsafe(path: Path, found: str) -> str:
    return (
        f"checkpoint {path} pickles objects that are not on the list of harmless ones: {found}; they are not loaded "
        "because that could run code; keep only its state dict (where the file is trusted) and load that"
    )


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
# classes under the names in the file: nothing that the file names is imported or called. A namespace holds plain data.
_STAND_INS: list[Any] = [
    argparse.Namespace,
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
