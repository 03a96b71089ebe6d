"""Checkpoints of a run in timm's layout: written atomically, found again, and restored."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from timm.task import TrainingTask
from timm.utils import CheckpointSaver

from ...checkpoints import check_same, read_content, run_state, unwrap
from ...errors import UserError
from ...files import sync_folder, write_atomically
from .sharded_checkpoints import read_run, sharded_checkpoints

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
    """Return all checkpoints of a run folder: files, and the folders of sharded ones."""
    return [*files(folder), *sharded_checkpoints(folder)]


def files(folder: Path) -> list[Path]:
    """Return the ordinary checkpoints of a run folder."""
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
            content = read_run(path) if path.is_dir() else read_content(path, mmap=True)
            candidates.append((position(content), path.name.startswith("last"), path))
        except UserError as error:
            problems.append(str(error))
    return (max(candidates)[2] if candidates else None), problems


def position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Return (epoch, step) that a checkpoint continues with."""
    state = run_state(checkpoint)
    if state:
        return state["epoch"], state["step"]
    return checkpoint.get("epoch", -1) + 1, 0


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
    state = unwrap(checkpoint, "raw")
    own = _bare(task.get_eval_model()).state_dict()
    check_same(state, own, f"checkpoint {path} does not fit the model")
    task.load_checkpoint_state(state, checkpoint.get("task_state"))
    if task.has_ema():
        if checkpoint.get("state_dict_ema") is None:
            raise UserError(
                f"checkpoint {path} has no averaged weights but --model-ema is on; train on without it "
                "or start from the weights with --initial-checkpoint"
            )
        task.load_checkpoint_state(unwrap(checkpoint, "ema"), checkpoint.get("task_state_ema"), ema=True)
    if optimizer is not None:
        restore_optimizer(optimizer, checkpoint, path, scaler)


def restore_optimizer(
    optimizer: torch.optim.Optimizer, checkpoint: dict[str, Any], path: Path, scaler: Any = None
) -> None:
    """Load an optimizer's state and the loss scale.

    Raises:
        UserError: The checkpoint has none of this kind.
    """
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
    except (KeyError, ValueError) as error:
        raise UserError(
            f"checkpoint {path} has no optimizer state of this kind ({error}); "
            "resume the weights alone with --no-resume-opt"
        ) from error
    if scaler is not None and scaler.state_dict_key in checkpoint:
        scaler.load_state_dict(checkpoint[scaler.state_dict_key])


def _bare(module: Any) -> torch.nn.Module:
    return getattr(module, "_orig_mod", module)
