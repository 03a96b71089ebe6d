"""Pictures of a run: the training curve and the predictions."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def draw_lines(
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    x: str,
    x_label: str,
    panels: Sequence[tuple[str, str]],
    path: str | Path,
    title: str,
) -> None:
    """Draw one panel per quantity: lines over a swept column, or bars where every line has one point.

    Args:
        lines: Rows per label; None marks a missing value.
        x: Swept column.
        x_label: Its name for a reader.
        panels: (column, name) of the quantities.
        path: PNG file.
        title: Heading.
    """
    single = all(len(rows) == 1 for rows in lines.values())
    height = max(4.2, 0.4 * len(lines) + 1.5) if single else 4.8
    figure = Figure(figsize=(6.5 * len(panels), height), layout="constrained")
    figure.suptitle(title)
    for axes, (column, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if single:
            values = [rows[0][column] or 0 for rows in lines.values()]
            bars = axes.barh(list(lines), values, color=BLUE)
            axes.bar_label(bars, fmt="{:,.4g}", padding=3, fontsize=9)
            axes.invert_yaxis()
            axes.set_xlim(right=1.15 * max(values))
            axes.set_xlabel(label)
            axes.grid(axis="x", alpha=0.25)
            continue
        for name, rows in lines.items():
            points = [(row[x], row[column]) for row in rows if row[column] is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
        axes.set(xlabel=x_label, ylabel=label)
        axes.set_xticks(sorted({row[x] for rows in lines.values() for row in rows}))
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_tradeoff(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draw top-1 accuracy against throughput and against parameters, one labelled point per row.

    Args:
        rows: Rows with ``model``, ``img_size``, ``top1``, ``images_per_second``, ``param_count_m``.
        path: PNG file.
        title: Heading.
    """
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(title)
    sizes = {row["img_size"] for row in rows}
    panels = (("images_per_second", "images per second"), ("param_count_m", "parameters (millions)"))
    for axes, (column, label) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.scatter([row[column] for row in rows], [row["top1"] for row in rows], color=BLUE)
        for row in rows:
            name = row["model"] + (f" @ {row['img_size']}" if len(sizes) > 1 else "")
            axes.annotate(name, (row[column], row["top1"]), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set(xlabel=label, ylabel="top-1 accuracy (%)")
        axes.margins(x=0.2, y=0.15)
        axes.grid(alpha=0.25)
    save_figure(figure, path)
