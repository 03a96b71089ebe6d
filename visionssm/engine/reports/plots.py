"""Pictures of a run: the training curve, predictions, and comparisons of models."""

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from matplotlib.transforms import BboxBase
from PIL import Image

from ...files import write_atomically

matplotlib.use("Agg")

BLUE, ORANGE, GREEN, RED, GREY = "#1f5fa8", "#d9730d", "#2f7d32", "#c62828", "#666666"


def save_figure(figure: Figure, path: str | Path, dpi: int = 120) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))


def draw_curves(rows: Sequence[dict[str, float]], path: str | Path, title: str) -> None:
    """Draw loss, accuracy (or PSNR) and learning rate over the epochs.

    Args:
        rows: Rows of `summary.csv`.
        path: PNG file.
        title: Heading, such as the model's name.
    """
    epochs = [row["epoch"] for row in rows]
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
    loss.yaxis.set_major_formatter("{x:g}")
    loss.yaxis.set_minor_formatter("{x:g}")
    rate = loss.twinx()
    rate.plot(epochs, [row["lr"] for row in rows], color=GREY, linewidth=1, linestyle=":", label="learning rate")
    rate.set_ylabel("learning rate", color=GREY)
    rate.tick_params(colors=GREY)
    rate.set_ylim(bottom=0)
    handles = [*loss.get_legend_handles_labels()[0], *rate.get_legend_handles_labels()[0]]
    loss.legend(handles=handles, fontsize=8)

    restores = any("eval_psnr" in row for row in rows)
    metric, name, unit = ("psnr", "PSNR", "dB") if restores else ("top1", "top-1", "%")
    best: list[tuple[float, float]] = []
    for column, color, label, style in (
        (f"eval_{metric}", ORANGE, name, "-"),
        ("eval_top5", BLUE, "top-5", "-"),
        (f"eval_ema_{metric}", GREEN, f"{name}, averaged weights", "--"),
    ):
        points = line(accuracy, column, color, label, linestyle=style)
        if points and metric in column:
            best.append(max(points, key=lambda point: point[1]))
    if best:
        epoch, value = max(best, key=lambda point: point[1])
        accuracy.set_title(f"best {name}: {value:.2f} {unit} in epoch {epoch:.0f}", fontsize=10)
        accuracy.legend(fontsize=8, loc="lower right")
    accuracy.set(xlabel="epoch", ylabel=f"validation {'PSNR' if restores else 'accuracy'} ({unit})")
    for axes in (loss, accuracy):
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)


@dataclass
class Prediction:
    """What a model says about one image.

    `names` and `probabilities` hold the best classes first; `truth` is None where it is not known, `path` where the
    image came from no file.
    """

    path: Path | None
    names: list[str]
    probabilities: list[float]
    truth: str | None = None

    @property
    def wrong(self) -> bool:
        return self.truth is not None and self.names[0] != self.truth


def draw_predictions(
    predictions: Sequence[Prediction],
    path: str | Path,
    *,
    limit: int = 60,
    columns: int = 10,
    title: str = "",
    picture: Callable[[Path], Any] | None = None,
) -> None:
    """Draw images with what was predicted: every mistake first, in red, then others in the order given.

    Args:
        predictions: What to draw.
        path: PNG file.
        limit: Number of images, raised as far as needed to show every mistake.
        columns: Images per row.
        title: Heading.
        picture: From a file to what is drawn; Pillow's reading of it when not given.
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
        assert prediction.path is not None, "predictions of files are drawn"
        if picture is not None:
            axes.imshow(picture(prediction.path), interpolation="nearest")
        else:
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
    *,
    from_zero: bool = True,
) -> None:
    """Draw one panel per quantity: lines over a swept column, or bars where every line has one point.

    Args:
        lines: Rows per label; None marks a missing value.
        x: Swept column.
        x_label: Its name for a reader.
        panels: (column, name) of the quantities.
        path: PNG file.
        title: Heading.
        from_zero: The axis of the quantities begins at 0.
    """
    single = all(len(rows) == 1 for rows in lines.values())
    height = max(4.2, 0.4 * len(lines) + 1.5) if single else 4.8
    figure = Figure(figsize=(6.5 * len(panels), height), layout="constrained")
    figure.suptitle(title)
    styles = _line_styles(lines)
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
                color, style = styles[name]
                axes.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=name, color=color)
        axes.set(xlabel=x_label, ylabel=label)
        ticks = sorted({row[x] for rows in lines.values() for row in rows})
        if from_zero and ticks[-1] >= 4 * ticks[0]:
            axes.set_xscale("log", base=2)
        if len(ticks) <= 12:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        if from_zero:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    save_figure(figure, path)


def _line_styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour for each label, shared by inference and training of the same, which is dashed."""
    colors: dict[str, str] = {}
    styles = {}
    for name in names:
        same = name.replace(" train", "").replace(" inference", "")
        styles[name] = (colors.setdefault(same, f"C{len(colors)}"), "--" if " train" in name else "-")
    return styles


def draw_tradeoff(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draw top-1 accuracy against throughput and against parameters.

    A model that was evaluated several times has points of one colour, labelled by what was swept; one that was
    evaluated once is a point with its name.

    Args:
        rows: Rows with `model`, `img_size`, `crop_pct`, `top1`, `images_per_second`, `param_count_m`.
        path: PNG file.
        title: Heading.
    """
    models: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: -row["top1"]):
        models.setdefault(row["model"], []).append(row)
    swept = [
        (column, text)
        for column, text in (("img_size", "{:g} px"), ("crop_pct", "crop {:g}"))
        if any(len({row[column] for row in group}) > 1 for group in models.values())
    ]
    numbered = len(models) > 6  # names would cover each other
    figure = Figure(figsize=(13 + 2 * numbered, max(5.5, 0.22 * len(models) + 1)), layout="constrained")
    figure.suptitle(title)
    both = figure.subplots(1, 2)
    panels = (
        ("images_per_second", "images per second, loading included", "accuracy against speed"),
        ("param_count_m", "parameters (millions)", "accuracy against size"),
    )
    for axes, (column, label, heading) in zip(both, panels, strict=True):
        labels = []
        for number, (model, group) in enumerate(models.items(), 1):
            points = [(row[column], row["top1"]) for row in group]
            shown = f"{number}  {model}" if numbered else model
            axes.plot(*zip(*points, strict=True), "o", markersize=5, color=f"C{number - 1}", label=shown)
            for row, point in zip(group, points, strict=True):
                settings = ", ".join(text.format(row[name]) for name, text in swept) if len(group) > 1 else ""
                name = f"{number}  {settings}".strip() if numbered else settings or model
                labels.append(axes.annotate(name, point, (6, 4), textcoords="offset points", fontsize=8))
        axes.set(xlabel=label, ylabel="top-1 accuracy (%)", title=heading)
        axes.margins(x=0.15 if numbered else 0.25, y=0.12)
        axes.grid(alpha=0.25)
        _part_labels(figure, labels)
    if numbered:
        figure.legend(handles=both[0].get_legend_handles_labels()[0], loc="outside right upper", fontsize=8)
    elif swept:
        both[0].legend(fontsize=8)
    save_figure(figure, path)


def _part_labels(figure: Figure, labels: Sequence[Annotation]) -> None:
    """Move labels up as far as needed until none covers another."""
    figure.draw_without_rendering()  # which places the axes
    taken: list[BboxBase] = []
    for label in sorted(labels, key=lambda label: label.xy[1]):
        box = label.get_window_extent()
        x, y = label.get_position()
        while any(box.overlaps(other) for other in taken):
            box = box.translated(0, 2)
            y += 2 * 72 / figure.dpi
        label.set_position((x, y))
        taken.append(box)


def draw_reliability(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> None:
    """Draw accuracy against confidence (a reliability diagram; Guo et al., arXiv:1706.04599, section 2), and how many.

    Args:
        rows: Bins with `from`, `to`, `images`, `confidence` and `accuracy`, in percent.
        path: PNG file.
        title: Heading.
    """
    figure = Figure(figsize=(6.2, 7), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    left = [row["from"] for row in rows]
    width = [row["to"] - row["from"] for row in rows]
    above.plot((0, 100), (0, 100), color=GREY, linestyle=":", label="as sure as it is right")
    accuracy = [row["accuracy"] for row in rows]
    above.bar(left, accuracy, width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    above.plot([row["confidence"] for row in rows], accuracy, "o", color=ORANGE, label="mean confidence")
    above.set(ylabel="accuracy (%)", ylim=(0, 101), title=title)
    above.legend(fontsize=8, loc="upper left")
    below.bar(left, [row["images"] for row in rows], width, align="edge", color=GREY, edgecolor="white")
    below.set(xlabel="confidence (%)", ylabel="images", xlim=(0, 100))
    for axes in (above, below):
        axes.grid(alpha=0.25)
    save_figure(figure, path)


def draw_confusion(counts: Any, names: Sequence[str] | None, path: str | Path, title: str) -> None:
    """Draw how often each class is taken for which, as shares of the true class.

    Args:
        counts: Integer tensor (classes, classes) by truth and prediction.
        names: Class names, or None for their numbers.
        path: PNG file.
        title: Heading.
    """
    total = len(counts)
    images = counts.sum(1, keepdim=True)
    shares = (counts / images.clamp(min=1)).numpy()
    side = min(4 + 0.28 * total, 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, ax=axes, label="share of the true class", shrink=0.8)
    right = int(counts.diag().sum())
    axes.set(xlabel="prediction", ylabel="truth", title=f"{title}: {right} of {int(counts.sum())} right")
    if total <= 40:
        labels = [*(names or [])[:total], *map(str, range(len(names or []), total))]
        axes.set_xticks(range(total), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(total), labels, fontsize=8)
    if total <= 20:
        for row in range(total):
            for column in range(total):
                if counts[row, column]:
                    color = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(
                        column, row, str(int(counts[row, column])), ha="center", va="center", color=color, fontsize=7
                    )
    save_figure(figure, path)


def draw_restorations(
    examples: Sequence[tuple[str, Any, Any, Any, float, float]], path: str | Path, title: str, side: int = 160
) -> None:
    """Draw images before and after restoration beside the truth: a row each, with a detail of the busiest part.

    Args:
        examples: Name; before, after and truth as float tensors (c, h, w) of values in [0, 1]; PSNR before and after.
        path: PNG file.
        title: Heading.
        side: Pixels of the detail's sides.
    """
    figure = Figure(figsize=(13, 3.5 * len(examples) + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(examples), 4, squeeze=False)
    for row, (name, before, after, truth, psnr_before, psnr_after) in zip(axes, examples, strict=True):
        top, left = _busiest(truth, side)
        _show(row[0], truth, name)
        row[0].add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=RED, linewidth=1.5))
        labels = (f"before: {psnr_before:.2f} dB", f"after: {psnr_after:.2f} dB", "truth")
        for axis, image, label in zip(row[1:], (before, after, truth), labels, strict=True):
            _show(axis, image[:, top : top + side, left : left + side], label)
    save_figure(figure, path)


def _show(axes: Any, image: Any, title: str) -> None:
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def _busiest(image: Any, side: int) -> tuple[int, int]:
    """Top and left of the square whose neighbouring pixels differ most."""
    grey = image.mean(0)
    change = grey.diff(dim=0)[:, :-1].abs() + grey.diff(dim=1)[:-1].abs()
    height, width = (max(length - side, 0) for length in grey.shape)
    places = [(top, left) for top in range(0, height + 1, 16) for left in range(0, width + 1, 16)]
    return max(places, key=lambda place: float(change[place[0] : place[0] + side, place[1] : place[1] + side].sum()))
