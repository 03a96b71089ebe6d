"""Pictures of a run: the training curve and the predictions."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from visionssm.engine.files import write_atomically

matplotlib.use("Agg")

BLUE, ORANGE, GREEN, RED, GREY = "#1f5fa8", "#d9730d", "#2f7d32", "#c62828", "#666666"


def save_figure(figure: Figure, path: str | Path, dpi: int = 120) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def draw_curves(rows: Sequence[dict[str, float]], path: str | Path, title: str) -> None:
    """Draw loss, accuracy and learning rate over the epochs.

    Args:
        rows: Rows of ``summary.csv``.
        path: PNG file.
        title: Heading, such as the model's name.
    """
    epochs = [row["epoch"] + 1 for row in rows]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    figure.suptitle(title)

    def line(axes, column, color, label, **style):
        points = [(e, r[column]) for e, r in zip(epochs, rows, strict=True) if not math.isnan(r.get(column, math.nan))]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker="o", markersize=3, **style)
        return points

    line(loss, "train_loss", BLUE, "training (with augmentation)")
    line(loss, "eval_loss", ORANGE, "validation")
    line(loss, "eval_ema_loss", GREEN, "validation, averaged weights", linestyle="--")
    loss.set(xlabel="epoch", ylabel="loss")
    loss.set_yscale("log")
    rate = loss.twinx()
    rate.plot(epochs, [row["lr"] for row in rows], color=GREY, linewidth=1, linestyle=":", label="learning rate")
    rate.set_ylabel("learning rate", color=GREY)
    rate.tick_params(colors=GREY)
    rate.set_ylim(bottom=0)
    handles = [*loss.get_legend_handles_labels()[0], *rate.get_legend_handles_labels()[0]]
    loss.legend(handles=handles, fontsize=8)

    best: list[tuple[float, float]] = []
    for column, color, label, style in (
        ("eval_top1", ORANGE, "top-1", "-"),
        ("eval_top5", BLUE, "top-5", "-"),
        ("eval_ema_top1", GREEN, "top-1, averaged weights", "--"),
    ):
        points = line(accuracy, column, color, label, linestyle=style)
        if points and "top1" in column:
            best.append(max(points, key=lambda point: point[1]))
    if best:
        epoch, value = max(best, key=lambda point: point[1])
        accuracy.set_title(f"best top-1: {value:.2f} % after epoch {epoch:.0f}", fontsize=10)
        accuracy.legend(fontsize=8, loc="lower right")
    accuracy.set(xlabel="epoch", ylabel="validation accuracy (%)")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)


@dataclass
class Prediction:
    """What a model says about one image.

    ``names`` and ``probabilities`` hold the best classes first; ``truth`` is None where it is not known.
    """

    path: Path
    names: list[str]
    probabilities: list[float]
    truth: str | None = None

    @property
    def wrong(self) -> bool:
        return self.truth is not None and self.names[0] != self.truth


def draw_predictions(
    predictions: Sequence[Prediction], path: str | Path, *, limit: int = 60, columns: int = 10, title: str = ""
) -> None:
    """Draw images with what was predicted: every mistake first, in red, then others in the order given.

    Args:
        predictions: What to draw.
        path: PNG file.
        limit: Number of images, raised as far as needed to show every mistake.
        columns: Images per row.
        title: Heading.
    """
    mistakes = [p for p in predictions if p.wrong]
    right = [p for p in predictions if not p.wrong]
    others = max(limit - len(mistakes), 0)
    step = max(len(right) / others, 1) if others else 1
    shown = mistakes + [right[int(i * step)] for i in range(min(others, len(right)))]
    rows = max(math.ceil(len(shown) / columns), 1)
    figure = Figure(figsize=(1.35 * columns, 1.75 * rows + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=12)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, prediction in zip(grid, shown, strict=False):
        with Image.open(prediction.path) as image:
            axes.imshow(image.convert("RGB"), interpolation="nearest")
        said = f"{prediction.names[0]}  {100 * prediction.probabilities[0]:.0f} %"
        if prediction.wrong:
            axes.set_title(f"{said}\nis {prediction.truth}", fontsize=9, color=RED, fontweight="bold")
            axes.patch.set_edgecolor(RED)
            axes.axis("on")
            axes.set(xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(color=RED, linewidth=3)
        else:
            axes.set_title(said, fontsize=9, color=GREEN if prediction.truth is not None else "black")
    save_figure(figure, path, dpi=100)
