"""Checkpoints of sharded runs: folders that every process writes a part of, behind the training's back.

A folder `checkpoint-<epoch>.sharded` or `recovery-<epoch>-<step>.sharded` appears by one rename when all of it is on
the disk. It holds safetensors files of torch.distributed.checkpoint and `run.pth`, everything that is no tensor;
nothing in it is executed when it is read. The processes that read it may be more or fewer than those that wrote it.
"""

import argparse
import logging
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.tensor import DTensor

from ...checkpoints import check_same, read_content
from ...errors import CheckpointError, UserError
from ...files import sync_folder, write_atomically
from ..data.processes import World
from .tasks import CarriesRunState
from .updater import Updater

_logger = logging.getLogger(__name__)

EXTENSION = ".sharded"
RUN_FILE = "run.pth"
_NAMES = re.compile(r"(?:checkpoint-(\d+)(?:\+\d+)?|recovery-\d+-\d+(?:\+\d+)?)" + re.escape(EXTENSION))
_MODEL, _AVERAGE, _OPTIMIZER = "state_dict", "state_dict_ema", "optimizer"


def sharded_checkpoints(folder: Path) -> list[Path]:
    """Return the sharded checkpoints of a run folder."""
    return [path for path in sorted(folder.glob(f"*{EXTENSION}")) if _NAMES.fullmatch(path.name)]


def remove(path: Path) -> None:
    """Delete a sharded checkpoint, which vanishes at once."""
    hidden = path.with_name(f".{path.name}.removed.tmp")
    os.replace(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def read_run(path: Path) -> dict[str, Any]:
    """Read what is no tensor in a sharded checkpoint, after checking that all tensors are there.

    Raises:
        CheckpointError: It is damaged or incomplete.
    """
    run = read_content(path / RUN_FILE)
    expected = run.get("tensors")
    if not isinstance(expected, dict):
        raise CheckpointError(f"checkpoint {path} is damaged: {RUN_FILE} does not tell its tensors")
    found = {name: tuple(entry.size) for name, entry in _contents(path).items()}
    if found != {name: tuple(shape) for name, shape in expected.items()}:
        wrong = sorted(name for name in {**expected, **found} if found.get(name) != tuple(expected.get(name, (-1,))))
        raise CheckpointError(
            f"checkpoint {path} is damaged or incomplete: {', '.join(wrong[:5])} ({len(wrong)} tensors)"
        )
    return run


def _contents(path: Path) -> Mapping[str, Any]:
    """Return what torch tells of the tensors of a folder, each of them complete."""
    try:
        metadata = dcp.HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except Exception as error:  # of safetensors and the file system, several kinds
        reason = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint {path} is damaged or incomplete: {reason}") from error
    found: Mapping[str, Any] = metadata
    for name, entry in found.items():
        parts: list[int] = [chunk.sizes.numel() for chunk in entry.chunks]
        if sum(parts) != entry.size.numel():
            raise CheckpointError(f"checkpoint {path} is damaged or incomplete: parts of {name} are missing")
    return found


def consolidate(path: Path) -> dict[str, Any]:
    """Return a sharded checkpoint in the layout of an ordinary one; the caller needs memory for all of it.

    Raises:
        CheckpointError: It is damaged or incomplete.
    """
    content = read_run(path)
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in _contents(path).items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    state: dict[int, dict[str, Any]] = {}
    for name, value in content.pop("optimizer_values").items():
        _, index, key = name.split("/", 2)
        state.setdefault(int(index), {})[key] = value
    for name in content.pop("tensors"):
        kind, _, rest = name.partition("/")
        if kind == _OPTIMIZER:
            index, _, key = rest.partition("/")
            state.setdefault(int(index), {})[key] = tensors[name]
        else:
            content.setdefault(kind, {})[rest] = tensors[name]
    content["optimizer"] = {"state": dict(sorted(state.items())), "param_groups": content["optimizer"]["param_groups"]}
    return content


def write_consolidated(path: Path, output: Path) -> None:
    """Write a sharded checkpoint as an ordinary file.

    Raises:
        CheckpointError: It is damaged or incomplete.
    """
    content = consolidate(path)
    write_atomically(output, lambda file: torch.save(content, file))


class ShardedSaver:
    """Writes sharded checkpoints while training goes on; every process has one.

    One is written at a time: the next waits for it, and so do `finish` and what fails in between. The newest epoch's
    and the best ones are kept, and those inside the running epoch until it ends.

    Args:
        folder: Run folder.
        task: Sharded task.
        optimizer: Its optimizer.
        updater: Applies gradients.
        args: Options of the run.
        world: Processes of the run.
        timeout: Seconds without an answer after which a peer counts as lost.
        decreasing: A smaller metric is better.
        max_history: Epoch checkpoints kept.
    """

    def __init__(
        self,
        folder: Path,
        task: CarriesRunState,
        optimizer: torch.optim.Optimizer,
        updater: Updater,
        args: argparse.Namespace,
        world: World,
        *,
        timeout: float,
        decreasing: bool,
        max_history: int,
    ):
        self.folder, self.task, self.optimizer, self.updater = folder, task, optimizer, updater
        self.args, self.world, self.decreasing, self.max_history = args, world, decreasing, max_history
        # of its own, because it talks while the training does
        self.group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self.metrics: dict[int, float | None] = {}
        self._pending: _Write | None = None

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the best metric, the earlier one of equals."""
        ranked = self._ranked()
        return ranked[0] if ranked else None

    @property
    def best_metric(self) -> float | None:
        """Its metric."""
        return None if self.best_epoch is None else self.metrics[self.best_epoch]

    def _ranked(self) -> list[int]:
        sign = 1 if self.decreasing else -1
        return [epoch for _, epoch in sorted((sign * v, e) for e, v in self.metrics.items() if v is not None)]

    def save_checkpoint(self, epoch: int, metric: float | None = None) -> None:
        """Begin to store the state after an epoch."""
        self.finish()
        self.metrics[epoch] = metric
        self._begin(f"checkpoint-{epoch}", epoch, metric)

    def save_inside_epoch(self, epoch: int, step: int) -> Path:
        """Begin to store the state before batch `step` of `epoch`."""
        return self._begin(f"recovery-{epoch}-{step}", epoch - 1, None)

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take over the metrics of the checkpoints in this folder."""
        last = checkpoint.get("epoch", -1)
        for found in sharded_checkpoints(self.folder):
            match = _NAMES.fullmatch(found.name)
            if match and match[1] and int(match[1]) <= last:
                self.metrics[int(match[1])] = read_content(found / RUN_FILE).get("metric")

    def finish(self) -> None:
        """Wait until what was begun is complete.

        Raises:
            UserError: It could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.wait()

    def write_files(self) -> None:
        """Write the newest and the best checkpoint as the ordinary files that every tool reads."""
        found = {int(m[1]): p for p in sharded_checkpoints(self.folder) if (m := _NAMES.fullmatch(p.name)) and m[1]}
        if not found:
            return
        write_consolidated(found[max(found)], self.folder / "last.pth.tar")
        if self.best_epoch in found:
            write_consolidated(found[self.best_epoch], self.folder / "model_best.pth.tar")
        _logger.info("wrote last.pth.tar and model_best.pth.tar from the sharded checkpoints of %s", self.folder)

    def _begin(self, name: str, epoch: int, metric: float | None) -> Path:
        self.finish()
        target = self.folder / f"{name}{EXTENSION}"
        temporary = self.folder / f".{target.name}.tmp"
        tensors, values = self._tensors()
        if self.world.primary:
            run = {
                "epoch": epoch,
                "version": 2,
                "arch": self.args.model,
                "args": self.args,
                self.updater.state_dict_key: self.updater.state_dict(),
                "optimizer": {"param_groups": self.optimizer.state_dict()["param_groups"]},
                "optimizer_values": values,
                "task_state": self.task.get_task_state(),
                "tensors": {key: list(value.shape) for key, value in tensors.items()},
            }
            run |= {} if metric is None else {"metric": metric}
            try:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir()
                write_atomically(temporary / RUN_FILE, lambda file: torch.save(run, file))
            except (OSError, RuntimeError) as error:
                raise _failed(target, error) from error
        distributed.barrier(self.group)
        future: Any = dcp.async_save(
            tensors,
            storage_writer=dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True),
            process_group=self.group,
        )
        self._pending = _Write(future, target, lambda: self._publish(temporary, target) if self.world.primary else None)
        return target

    def _tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all tensors of the run by name, and what else the optimizer remembers."""
        tensors: dict[str, Tensor] = {}
        for kind, module in _modules(self.task).items():
            tensors |= {f"{kind}/{name}": value for name, value in module.state_dict().items()}
        values = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMIZER}/{index}/{key}"] = value
                else:
                    values[f"{_OPTIMIZER}/{index}/{key}"] = value
        return tensors, values

    def _publish(self, temporary: Path, target: Path) -> None:
        """Let a complete checkpoint appear, and remove what it makes superfluous."""
        place, number = target, 1
        while place.exists():  # a run that went back to an earlier epoch
            place = target.with_name(f"{target.name.removesuffix(EXTENSION)}+{number}{EXTENSION}")
            number += 1
        sync_folder(temporary)
        os.replace(temporary, place)
        sync_folder(self.folder)
        found = sharded_checkpoints(self.folder)
        epochs = {path: int(m[1]) for path in found if (m := _NAMES.fullmatch(path.name)) and m[1]}
        if place in epochs:
            kept = {epochs[place], *self._ranked()[: self.max_history]}
            unranked = [epoch for epoch in sorted(self.metrics, reverse=True) if self.metrics[epoch] is None]
            kept |= set(unranked[: max(0, self.max_history - len(self._ranked()))])
            superfluous = [
                path
                for path in found
                if epochs.get(path) not in kept or (epochs[path] == epochs[place] and path != place)
            ]
        else:
            inner = [path for path in found if path not in epochs]
            superfluous = sorted(inner, key=lambda path: path.stat().st_mtime)[:-2]
        for path in superfluous:
            remove(path)


class _Write:
    """A checkpoint that is being written, and what follows when all processes have written their part."""

    def __init__(self, future: Future, target: Path, then: Callable[[], None]):
        self.target = target
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(future, then), daemon=True)
        self.thread.start()

    def _run(self, future: Future, then: Callable[[], None]) -> None:
        try:
            future.result()
            then()
        except BaseException as error:  # torch wraps those of all processes in one of its own
            self.error = error

    def wait(self) -> None:
        """Wait for the end.

        Raises:
            UserError: It failed.
        """
        self.thread.join()
        if self.error is not None:
            raise _failed(self.target, self.error) from self.error


def _failed(target: Path, error: BaseException) -> UserError:
    inner = next(iter(getattr(error, "failures", {}).values()), error)
    inner = inner[0] if isinstance(inner, tuple) else inner
    reason = inner.strerror if isinstance(inner, OSError) and inner.strerror else (str(inner).splitlines() or ["?"])[0]
    good = sharded_checkpoints(target.parent)
    newest = max(good, key=lambda path: path.stat().st_mtime) if good else None
    return UserError(
        f"checkpoint {target} cannot be written ({reason}); "
        + (
            f"the last good one is {newest}, continue from it with --resume auto"
            if newest
            else "there is no earlier one"
        )
    )


def restore_sharded(
    task: CarriesRunState,
    path: Path,
    run: dict[str, Any],
    arch: str,
    optimizer: torch.optim.Optimizer | None,
    updater: Updater,
) -> None:
    """Load a sharded checkpoint into a sharded task: every process reads what its shares need.

    Args:
        task: Sharded task.
        path: The checkpoint.
        run: As from `read_run`.
        arch: Name of the model.
        optimizer: Its optimizer, or None to leave that anew.
        updater: Applies gradients.

    Raises:
        UserError: It is of another model or lacks something.
    """
    if run["arch"].split(".")[0] != arch.split(".")[0]:
        raise UserError(f"checkpoint {path} is of model {run['arch']!r}, expected {arch!r}")
    contents = _contents(path)
    wanted: dict[str, Tensor] = {}
    for kind, module in _modules(task).items():
        found = {
            name.partition("/")[2]: torch.empty(entry.size, device="meta")
            for name, entry in contents.items()
            if name.startswith(f"{kind}/")
        }
        if kind == _AVERAGE and not found:
            raise UserError(
                f"checkpoint {path} has no averaged weights but --model-ema is on; train on without it "
                "or start from the weights with --initial-checkpoint"
            )
        own = module.state_dict()
        check_same(found, own, f"checkpoint {path} does not fit the model")
        wanted |= {f"{kind}/{name}": value for name, value in own.items()}
    state: dict[int, dict[str, Any]] = {}
    if optimizer is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for name, value in run["optimizer_values"].items():
            _, index, key = name.split("/", 2)
            state.setdefault(int(index), {})[key] = value
        for name, entry in contents.items():
            if name.startswith(f"{_OPTIMIZER}/"):
                _, index, key = name.split("/", 2)
                if int(index) >= len(parameters):
                    raise _other_optimizer(path, f"it is of {int(index) + 1} parameters")
                parameter, dtype = parameters[int(index)], entry.properties.dtype
                sharded = isinstance(parameter, DTensor) and entry.size == parameter.shape
                like = parameter.detach() if sharded else torch.empty(entry.size)
                wanted[name] = state.setdefault(int(index), {})[key] = torch.zeros_like(like, dtype=dtype)
    dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(path)))
    task.load_task_state(run["task_state"])
    if optimizer is not None:
        try:
            optimizer.load_state_dict({"state": state, "param_groups": run["optimizer"]["param_groups"]})
        except (KeyError, ValueError) as error:
            raise _other_optimizer(path, str(error)) from error
        updater.load_state_dict(run.get(updater.state_dict_key, {}))


def _other_optimizer(path: Path, reason: str) -> UserError:
    return UserError(
        f"checkpoint {path} has no optimizer state of this kind ({reason}); resume the weights alone with "
        "--no-resume-opt"
    )


def _modules(task: CarriesRunState) -> dict[str, nn.Module]:
    found: dict[str, Any] = {_MODEL: task.get_eval_model()}
    if task.has_ema():
        found[_AVERAGE] = cast(nn.Module, task.get_trainable_module(ema=True)).module
    return found
