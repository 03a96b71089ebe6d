"""What a run tells while it works: log lines or a progress bar, `summary.csv`, TensorBoard, Weights & Biases."""

import csv
import importlib.util
import logging
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ...errors import UserError
from ...files import write_text
from .rows import as_csv

_logger = logging.getLogger(__name__)

EARLY = 5  # steps after which a first line appears


def setup_logging(primary: bool = True) -> None:
    """Send log lines to standard output, through tqdm so that a progress bar stays whole."""
    root = logging.getLogger()
    root.setLevel(logging.INFO if primary else logging.WARNING)
    logging.getLogger("timm").setLevel(logging.WARNING)
    if not any(isinstance(handler, _TqdmHandler) for handler in root.handlers):
        root.addHandler(_TqdmHandler())


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append log lines with their time to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _TqdmHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """Return `h:mm:ss`."""
    seconds = max(0, round(seconds))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class Progress:
    """Progress of one pass over a loader: a bar on a terminal, plain lines elsewhere.

    Args:
        label: What is running, such as `epoch 3/20`.
        total: Number of steps of the pass.
        first: Step it starts with.
        interval: Steps between plain lines.
        remaining: Steps left after this pass, for the estimated time of arrival.
        enabled: Off in all but the first process.
    """

    def __init__(
        self, label: str, total: int, *, first: int = 0, interval: int = 50, remaining: int = 0, enabled: bool = True
    ):
        self.label, self.total, self.interval, self.remaining = label, total, interval, remaining
        self.enabled = enabled = enabled and _logger.isEnabledFor(logging.INFO)
        self.first = self.step = first
        self.images = 0
        self.started = time.perf_counter()
        on_terminal = enabled and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=first, desc=label, unit="step", leave=False) if on_terminal else None

    def advance(self, images: int, values: Callable[[], Mapping[str, float]] = dict) -> None:
        """Count a step.

        Args:
            images: Images of the step.
            values: Returns what to show; called only when it is shown, since reading a value waits for the device.
        """
        self.step += 1
        self.images += images
        if self.bar is not None:
            self.bar.update()
        early = (
            self.step - self.first == EARLY < self.interval and self.bar is None
        )  # says in time how long it will take
        if not self.enabled or (self.step % self.interval and self.step != self.total and not early):
            return
        shown = {name: f"{value:.4g}" for name, value in values().items()}
        if self.bar is not None:
            self.bar.set_postfix(shown | {"img/s": f"{self.rate():.0f}"})
        else:
            numbers = "  ".join(f"{name} {value}" for name, value in shown.items())
            _logger.info(
                "%s  step %d/%d  %s  %.0f img/s  ETA %s",
                self.label,
                self.step,
                self.total,
                numbers,
                self.rate(),
                duration(self.seconds_left()),
            )

    def rate(self) -> float:
        """Return images per second of this process."""
        return self.images / max(time.perf_counter() - self.started, 1e-9)

    def seconds_left(self) -> float:
        """Return the estimated seconds for the steps left in this pass and after it."""
        done = max(self.step - self.first, 1)
        return (time.perf_counter() - self.started) / done * (self.total - self.step + self.remaining)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class Summary:
    """`summary.csv`: one row per epoch, with timm's column names, rewritten atomically."""

    def __init__(self, path: Path, first_epoch: int):
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if first_epoch and path.is_file():
            with path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < first_epoch]

    def add(self, epoch: int, train: dict[str, float], evaluation: dict[str, float], rate: float) -> None:
        """Add the row of an epoch and write the file."""
        row: dict[str, Any] = {"epoch": epoch}
        row |= {f"train_{name}": value for name, value in train.items()}
        row |= {f"eval_{name}": value for name, value in evaluation.items()}
        self.rows.append(row | {"lr": rate})
        columns = list(dict.fromkeys(name for row in self.rows for name in row if name != "lr")) + ["lr"]
        write_text(self.path, as_csv(columns, self.rows))


def read_summary(path: Path) -> list[dict[str, float]]:
    """Return the rows of a `summary.csv` as numbers; empty cells become NaN."""
    try:
        with path.open(newline="") as file:
            return [
                {name: float(value) if value else math.nan for name, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except (OSError, ValueError) as error:
        raise UserError(f"summary {path} cannot be read: {error}") from error


class Trackers:
    """TensorBoard and Weights & Biases, when asked for.

    Args:
        folder: Run folder.
        tensorboard: Write TensorBoard events.
        wandb: Log to Weights & Biases.
        project: Its project.
        wandb_id: Its run that is continued; None begins one.
        config: Plain values that describe the run.

    Raises:
        UserError: A package is missing.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
        project: str | None = None,
        wandb_id: str | None = None,
        config: Mapping[str, Any],
    ):
        self.tensorboard = self.wandb = None
        self.wandb_id = wandb_id
        if tensorboard:
            require_package("tensorboard", "--log-tensorboard")
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  optional package

            self.tensorboard = SummaryWriter(str(folder / "tensorboard"))
        if wandb:
            require_package("wandb", "--log-wandb")
            import wandb as package  # noqa: PLC0415  optional package

            self.wandb_id = wandb_id or uuid.uuid4().hex
            self.wandb = package.init(
                project=project,
                name=folder.name,
                id=self.wandb_id,
                resume="allow",
                config=dict(config),
                dir=str(folder),
            )

    def log(self, values: dict[str, float], epoch: int) -> None:
        """Record the numbers of an epoch."""
        if self.tensorboard is not None:
            for name, value in values.items():
                self.tensorboard.add_scalar(name, value, epoch)
            self.tensorboard.flush()
        if self.wandb is not None:
            self.wandb.log(values, step=epoch)


def require_package(name: str, flag: str) -> None:
    """Raise when an optional package is not installed."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{flag} needs the package {name!r}; install it with: pip install {name}")
