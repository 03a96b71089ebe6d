"""The folder of a run: what may be written there, and when."""

import argparse
from pathlib import Path

import yaml

from ...errors import UserError
from ...files import write_text
from .checkpoints import EXTENSION, run_checkpoints

KEPT_OUT_OF_ARGS = ("config", "overwrite")


class RunFolder:
    """Files of a run. An earlier run is replaced only when the new one has something to store.

    Args:
        args: Training options.

    Raises:
        UserError: The folder holds a run that is neither resumed nor to be overwritten, or cannot be made.
    """

    def __init__(self, args: argparse.Namespace):
        self.path = Path(args.output) / args.experiment if args.experiment else Path(args.output)
        self.args = args
        self.claimed = False
        continues = args.resume == "auto" or (args.resume and Path(args.resume).resolve().parent == self.path.resolve())
        if run_checkpoints(self.path) and not continues and not args.overwrite:
            raise UserError(
                f"{self.path} already holds a run; continue it with --resume auto, replace it with "
                "--overwrite, or choose another --output"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"run folder {self.path} cannot be made: {error.strerror}") from error

    def claim(self, keep: bool) -> None:
        """Make the folder this run's: remove an earlier run's results unless kept, and write `args.yaml`."""
        if self.claimed:
            return
        self.claimed = True
        for leftover in self.path.glob(".*.tmp"):  # of writes that a kill cut short
            leftover.unlink()
        if not keep:
            for old in (
                *run_checkpoints(self.path),
                self.path / f"model_best{EXTENSION}",
                self.path / "summary.csv",
                self.path / "curve.png",
            ):
                old.unlink(missing_ok=True)
        options = {name: value for name, value in sorted(vars(self.args).items()) if name not in KEPT_OUT_OF_ARGS}
        write_text(self.path / "args.yaml", yaml.safe_dump(options))

    @property
    def summary(self) -> Path:
        return self.path / "summary.csv"

    @property
    def curve(self) -> Path:
        return self.path / "curve.png"
