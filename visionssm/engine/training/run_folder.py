"""The folder of a run: what may be written there, and when."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError
from ...files import write_text
from .checkpoints import EXTENSION, files, run_checkpoints
from .sharded_checkpoints import remove, sharded_checkpoints

KEPT_OUT_OF_ARGS = ("config", "overwrite")


class RunFolder:
    """Files of a run. An earlier run is replaced only when the new one has something to store.

    Args:
        output: The folder, or the one above it with `experiment`.
        experiment: Name of the folder inside `output`; "" for `output` itself.
        resume: What the run continues: "", "auto", or a checkpoint.
        overwrite: Replace an earlier run.
        options: Training options, for `args.yaml`.

    Raises:
        UserError: The folder holds a run that is neither resumed nor to be overwritten, or cannot be made.
    """

    def __init__(
        self,
        output: str,
        experiment: str = "",
        *,
        resume: str = "",
        overwrite: bool = False,
        options: Mapping[str, Any],
    ):
        self.path = Path(output) / experiment
        self.options = options
        self.claimed = False
        continues = resume == "auto" or (bool(resume) and self.holds(resume))
        if run_checkpoints(self.path) and not continues and not overwrite:
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume auto, replace it with "
                "--overwrite, or choose another --output"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run folder {self.path} cannot be made: {error.strerror}") from error

    def holds(self, checkpoint: str | Path) -> bool:
        """Return whether a checkpoint lies in this folder."""
        return Path(checkpoint).resolve().parent == self.path.resolve()

    def claim(self, keep: bool) -> None:
        """Make the folder this run's: remove an earlier run's results unless kept, and write `args.yaml`."""
        if self.claimed:
            return
        self.claimed = True
        for leftover in self.path.glob(".*.tmp"):  # of writes that a kill cut short
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        if not keep:
            for old in (
                *files(self.path),
                self.path / f"model_best{EXTENSION}",
                self.path / "summary.csv",
                self.path / "curve.png",
            ):
                old.unlink(missing_ok=True)
            for folder in sharded_checkpoints(self.path):
                remove(folder)
        options = {name: value for name, value in sorted(self.options.items()) if name not in KEPT_OUT_OF_ARGS}
        write_text(self.path / "args.yaml", yaml.safe_dump(options))

    @property
    def summary(self) -> Path:
        return self.path / "summary.csv"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"
