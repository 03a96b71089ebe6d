"""Checkpoints in timm's layout, written atomically, and read with errors that say what is wrong."""

import argparse
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from timm.task import TrainingTask
from timm.utils import CheckpointSaver
from timm.utils.checkpoint_saver import load_checkpoint_metadata

from ...checkpoints import inert_stand_ins
from ...errors import UserError
from ...files import sync_folder, write_atomically
from .tasks import RUN_STATE

EXTENSION = ".pth.tar"


class AtomicSaver(CheckpointSaver):
    """timm's checkpoint saver (`last`, `model_best`, `checkpoint-N`) whose files appear complete or not at all.

    Beside the epoch checkpoints it keeps two inside the running epoch, `recovery-<epoch>-<step>`.
    """

    def _save(self, save_path: str, epoch: int, metric: float | None = None) -> None:
        try:
            write_atomically(save_path, lambda file: super(AtomicSaver, self)._save(file, epoch, metric))
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            good = newest_name(Path(self.checkpoint_dir))
            raise UserError(
                f"checkpoint {save_path} cannot be written ({reason}); "
                + (
                    f"the last good one is {good}, continue from it with --resume auto"
                    if good
                    else "there is no earlier one"
                )
            ) from error

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)
        sync_folder(self.checkpoint_dir)

    def _duplicate(self, src: str, dst: str) -> None:
        temporary = f"{dst}.tmp"
        Path(temporary).unlink(missing_ok=True)
        try:
            os.link(src, temporary)
        except OSError:  # file systems without hard links
            shutil.copyfile(src, temporary)
        self._replace(temporary, dst)

    def save_inside_epoch(self, epoch: int, step: int) -> Path:
        """Store the state before batch `step` of `epoch`, keeping the previous such file as well.

        The epoch in the file is the last complete one, so timm's own resume would repeat the running epoch.
        """
        folder = Path(self.checkpoint_dir)
        path = folder / f"{self.recovery_prefix}-{epoch}-{step}{EXTENSION}"
        self._save(str(path), epoch - 1)
        for old in recovery_files(folder)[:-2]:
            old.unlink()
        return path

    def save_checkpoint(self, epoch: int, metric: float | None = None) -> tuple:
        result = super().save_checkpoint(epoch, metric)
        for old in recovery_files(Path(self.checkpoint_dir)):
            old.unlink()
        return result

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take over the bookkeeping of a checkpoint of this folder, and finish what a kill may have cut short."""
        if "saver" not in checkpoint:
            return
        self.load_state_dict(checkpoint["saver"])
        epoch, metric = checkpoint["saver"]["pending"]
        numbered = self._checkpoint_path(epoch)
        if metric is not None and path.name == f"last{EXTENSION}" and numbered not in dict(self.checkpoint_files):
            full = len(self.checkpoint_files) >= self.max_history
            if not full or self.cmp(metric, self.checkpoint_files[-1][1]):
                self._cleanup_checkpoints(int(full))
                self._duplicate(str(path), numbered)
                self._track_checkpoint(numbered, epoch, metric)
        if metric is not None and self.best_epoch == epoch:
            self._duplicate(str(path), os.path.join(self.checkpoint_dir, f"model_best{EXTENSION}"))


def recovery_files(folder: Path) -> list[Path]:
    """Return the checkpoints inside an epoch, oldest first."""
    found = []
    for path in folder.glob(f"recovery-*{EXTENSION}"):
        match = re.fullmatch(r"recovery-(\d+)-(\d+)" + re.escape(EXTENSION), path.name)
        if match:
            found.append((int(match[1]), int(match[2]), path))
    return [path for *_, path in sorted(found)]


def run_checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints of a run folder."""
    names = [folder / f"last{EXTENSION}", *recovery_files(folder), *folder.glob(f"checkpoint-*{EXTENSION}")]
    return [path for path in names if path.is_file()]


def newest_name(folder: Path) -> str | None:
    """Return the most recently written checkpoint of a folder, for messages."""
    paths = run_checkpoints(folder)
    return str(max(paths, key=lambda path: path.stat().st_mtime)) if paths else None


def find_newest(folder: Path) -> tuple[Path | None, list[str]]:
    """Find the checkpoint to continue from.

    Returns:
        The readable checkpoint that is furthest in training, or None, and a sentence for each one that is damaged.
    """
    problems, candidates = [], []
    for path in run_checkpoints(folder):
        try:
            candidates.append((position(read_checkpoint(path, metadata_only=True)), path.name.startswith("last"), path))
        except UserError as error:
            problems.append(str(error))
    return (max(candidates)[2] if candidates else None), problems


def position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Return (epoch, step) that a checkpoint continues with."""
    state = (checkpoint.get("task_state") or {}).get(RUN_STATE)
    if state is not None:
        return state["epoch"], state["step"]
    return checkpoint.get("epoch", -1) + 1, 0


def read_checkpoint(path: str | os.PathLike, metadata_only: bool = False) -> dict[str, Any]:
    """Read a checkpoint or weight file without executing anything in it.

    Args:
        path: `.pth`, `.pth.tar`, `.pt`, `.bin` or `.safetensors`.
        metadata_only: Map the tensors instead of reading them.

    Raises:
        UserError: The file is missing, damaged, or needs code that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return {"state_dict": load_file(path)}
        if metadata_only:
            checkpoint = load_checkpoint_metadata(str(path))
        else:
            checkpoint = _read_torch_file(path)
    except SafetensorError as error:
        raise UserError(f"checkpoint {path} is damaged or not a safetensors file: {error}") from error
    except Exception as error:  # torch raises pickle, zip, runtime and EOF errors for damaged files
        if "weights_only" in str(error) and "global" in str(error).lower():
            raise UserError(
                f"checkpoint {path} holds objects other than tensors and plain values, which are not "
                "loaded because that could run code"
            ) from error
        size = path.stat().st_size
        raise UserError(
            f"checkpoint {path} is damaged or incomplete ({size} bytes): it is not a readable torch file"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"checkpoint {path} holds a {type(checkpoint).__name__}, expected a dictionary of weights")
    return checkpoint


def _read_torch_file(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        with inert_stand_ins():  # authors pickle their configuration beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)


def weights(checkpoint: dict[str, Any], use_ema: bool = False) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint of ours, of timm's or of a bare state dict."""
    names = ("state_dict_ema", "model_ema") if use_ema else ("state_dict", "model")
    for name in names:
        if isinstance(checkpoint.get(name), dict):
            return clean_state_dict(checkpoint[name])
    if use_ema:
        raise UserError("the checkpoint has no averaged weights (state_dict_ema); it was trained without --model-ema")
    return clean_state_dict(checkpoint)


def load_weights(model: torch.nn.Module, path: str | os.PathLike, use_ema: bool = False) -> None:
    """Load a run's or an author's checkpoint into a model, completely or not at all.

    Raises:
        UserError: The file is damaged or belongs to another model; the message names what differs.
    """
    state = weights(read_checkpoint(path), use_ema)
    convert = getattr(model, "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, model)
        except (KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"checkpoint {path} does not fit the model: {' '.join(str(error).split())}") from error
    check_state(model, state, path)
    model.load_state_dict(state)


def check_state(model: torch.nn.Module, state: dict[str, torch.Tensor], path: str | os.PathLike) -> None:
    """Raise a readable difference when weights are not those of a model."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    parts = [
        f"{len(names)} {label} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, label in ((missing, "missing"), (extra, "unknown"), (shapes, "of another shape"))
        if names
    ]
    if parts:
        raise UserError(
            f"checkpoint {path} is not of this model ({type(model).__name__}): parameters " + "; ".join(parts)
        )


def restore_task(
    task: TrainingTask,
    checkpoint: dict[str, Any],
    path: Path,
    arch: str,
    optimizer: torch.optim.Optimizer | None,
    scaler: Any = None,
) -> None:
    """Load weights, averaged weights, run state and, if given, optimizer and loss scale into a task.

    Raises:
        UserError: The checkpoint is of another model or lacks something.
    """
    found = checkpoint.get("arch")
    if found and found.split(".")[0] != arch.split(".")[0]:
        raise UserError(f"checkpoint {path} is of model {found!r}, expected {arch!r}")
    state = weights(checkpoint)
    check_state(_bare(task.get_eval_model()), state, path)
    task.load_checkpoint_state(state, checkpoint.get("task_state"))
    if task.has_ema():
        if checkpoint.get("state_dict_ema") is None:
            raise UserError(
                f"checkpoint {path} has no averaged weights but --model-ema is on; train on without it "
                "or start from the weights with --initial-checkpoint"
            )
        task.load_checkpoint_state(weights(checkpoint, use_ema=True), checkpoint.get("task_state_ema"), ema=True)
    if optimizer is not None:
        try:
            optimizer.load_state_dict(checkpoint["optimizer"])
        except (KeyError, ValueError) as error:
            raise UserError(
                f"checkpoint {path} has no optimizer state of this kind ({error}); "
                "resume the weights alone with --no-resume-opt"
            ) from error
        if scaler is not None and scaler.state_dict_key in checkpoint:
            scaler.load_state_dict(checkpoint[scaler.state_dict_key])


def _bare(module: torch.nn.Module) -> torch.nn.Module:
    return getattr(module, "_orig_mod", module)
