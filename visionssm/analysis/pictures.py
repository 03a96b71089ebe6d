"""Pictures of what the other modules of this package measure. Colours tell apart for the colour-blind too."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .activations import LayerStatistics, first_nonfinite
from .receptive_field import central_square, normalise
from .token_dynamics import LayerDynamics

POSITIVE, SIGNED = "viridis", "PuOr_r"  # from nothing to much; from against to for, white between
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8c8c8c"  # Okabe and Ito's
_PANEL = 2.7  # inches


def draw_receptive_fields(maps: Mapping[str, Tensor], shares: Sequence[float] = (0.5, 0.9)) -> Figure:
    """One panel for each receptive field, on one scale: its fifth root over its maximum, as VMamba shows it.

    Args:
        maps: Fields (h, w), not normalised, by heading.
        shares: A central square is drawn, and its area told, for each share of the field.
    """
    figure, panels = _panels(len(maps), [next(iter(maps.values())).shape] * len(maps), extra=0.75)
    image = None
    styles = dict(zip(shares, ("-", "--", ":"), strict=False))
    for panel, (name, field) in zip(panels, maps.items(), strict=False):
        image = panel.imshow(normalise(field).numpy(), cmap=POSITIVE, vmin=0, vmax=1)
        areas = []
        for share, style in styles.items():
            square = central_square(field, share)
            areas.append(f"{share:.0%} in {'more than the square' if square is None else f'{square[1]:.1%}'}")
            if square:
                _draw_square(panel, field.shape, square[0], style)
        panel.set_title(f"{name}\n{', '.join(areas)}", fontsize=8)
    words = {"-": "line", "--": "dashes", ":": "dots"}
    told = ", ".join(f"{words[style]}: {share:.0%}" for share, style in styles.items())
    _colour_bar(
        figure, image, panels, f"gradient of the centre, fifth root, over its maximum\n{told} of it, and its area"
    )
    return figure


def _draw_square(panel: Axes, size: Sequence[int], side: int, style: str) -> None:
    from matplotlib.patches import Rectangle

    corner = (size[1] // 2 - side // 2 - 0.5, size[0] // 2 - side // 2 - 0.5)
    # white over black is seen on every colour
    for colour, width in (("black", 2.4), ("white", 1.2)):
        panel.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=width, linestyle=style))


def draw_over_images(
    images: Sequence[Tensor],
    maps: Sequence[Sequence[Tensor]],
    headings: Sequence[Sequence[str]],
    *,
    signed: bool,
    label: str,
    marks: Sequence[tuple[float, float] | None] | None = None,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Each image, then its maps over it.

    Args:
        images: (h, w, 3) or (h, w), 0 to 1.
        maps: Of each image, maps of any size that are laid over it.
        headings: Of each map.
        signed: Colours for values below and above 0, up to the 99th percentile of the absolute ones; else from 0 up to
            the largest. Each map has its own scale.
        label: What the colours mean.
        marks: Row and column in each image's pixels that is marked, or None.
        titles: Heading of each image.
    """
    columns = 1 + max(map(len, maps))
    abreast = min(len(images), max(1, 4 // columns))
    figure, panels = _panels(columns * len(images), [images[0].shape[:2]], extra=0.75, columns=abreast * columns)
    shown = None
    for row, image in enumerate(images):
        height, width = image.shape[:2]
        line = panels[row * columns : (row + 1) * columns]
        _show_image(line[0], image)
        line[0].set_title("image" if titles is None else titles[row], fontsize=8)
        for panel, field, heading in zip(line[1:], maps[row], headings[row], strict=False):
            values = field.detach().float().cpu().numpy()
            largest = float(np.quantile(np.abs(values), 0.99 if signed else 1.0)) or 1.0
            _show_image(panel, image, grey=True)
            shown = panel.imshow(
                values / largest,
                cmap=SIGNED if signed else POSITIVE,
                vmin=-1 if signed else 0,
                vmax=1,
                alpha=0.75,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
                interpolation="nearest",
            )
            panel.set_title(heading, fontsize=8)
        mark = marks[row] if marks else None
        if mark:
            for panel in line:
                panel.plot(mark[1], mark[0], "+", color="black", markersize=11, markeredgewidth=3)
                panel.plot(mark[1], mark[0], "+", color="white", markersize=9, markeredgewidth=1.2)
    _colour_bar(figure, shown, panels, label)
    return figure


def _show_image(panel: Axes, image: Tensor, grey: bool = False) -> None:
    values = image.detach().float().cpu().numpy()
    if values.ndim == 3 and grey:
        values = values.mean(-1)
    panel.imshow(values, cmap="gray", vmin=0, vmax=1)


def draw_features(image: Tensor, maps: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """The image, then the principal components of each feature map as red, green and blue.

    Args:
        image: (h, w, 3) or (h, w), 0 to 1.
        maps: What `feature_pictures.principal_components` returns, by heading.
    """
    figure, panels = _panels(1 + len(maps), [image.shape[:2]] * (1 + len(maps)), extra=0.3)
    _show_image(panels[0], image)
    panels[0].set_title("image", fontsize=8)
    for panel, (name, (colours, shares)) in zip(panels[1:], maps.items(), strict=False):
        panel.imshow(colours.permute(1, 2, 0).numpy(), interpolation="nearest")
        h, w = colours.shape[1:]
        told = " + ".join(f"{share:.0%}" for share in shares)
        panel.set_title(f"{name}: {h} × {w}\n{told} of the variance", fontsize=8)
    figure.supxlabel("first three principal components as red, green, blue; each from its 4 % to its 96 %", fontsize=8)
    return figure


def draw_activations(statistics: Sequence[LayerStatistics], title: str) -> Figure:
    """Deviation and largest absolute value of each layer's output, in the order of the calls; where NaN begins."""
    figure = Figure(figsize=(8.5, 3.6), dpi=130, layout="constrained")
    panel = figure.subplots()
    steps = np.arange(len(statistics))
    panel.plot(steps, [s.largest for s in statistics], color=ORANGE, marker="^", markersize=3, label="largest value")
    panel.plot(steps, [s.std for s in statistics], color=BLUE, marker="o", markersize=3, label="deviation")
    panel.set_yscale("log")
    broken = first_nonfinite(list(statistics))
    if broken is not None:
        at = list(statistics).index(broken)
        panel.axvline(at, color="black", linestyle="--", linewidth=1, label=f"first NaN or infinity: {broken.name}")
    every = max(1, math.ceil(len(statistics) / 28))
    panel.set_xticks(steps[::every], [s.name for s in statistics][::every], rotation=90, fontsize=6)
    panel.set(title=title, ylabel="absolute value")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, frameon=False)
    return figure


def draw_dynamics(layers: Sequence[LayerDynamics], title: str) -> Figure:
    """Token norms and rank correlations by block, and the eigenvalues' range of every route."""
    figure = Figure(figsize=(8.5, 5.2), dpi=130, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps = np.arange(len(layers))
    mean, low, high = (np.array([layer.after[i] for layer in layers]) for i in range(3))
    above.fill_between(steps, low, high, color=BLUE, alpha=0.2, linewidth=0, label="smallest to largest")
    above.plot(steps, mean, color=BLUE, marker="o", markersize=3, label="mean norm after the block")
    above.set_yscale("log")
    above.set_ylabel("norm of a token")
    ranks = above.twinx()
    values = [float("nan") if layer.rank_correlation is None else layer.rank_correlation for layer in layers]
    ranks.plot(steps, values, color=ORANGE, marker="^", markersize=3, linestyle="--", label="rank correlation")
    ranks.set(ylim=(-1.05, 1.05), ylabel="with the block before")
    lines = above.get_legend_handles_labels(), ranks.get_legend_handles_labels()
    above.legend(lines[0][0] + lines[1][0], lines[0][1] + lines[1][1], fontsize=7, frameon=False, loc="best")
    for step, layer in zip(steps, layers, strict=True):
        for i, route in enumerate(layer.routes):
            x = step + 0.12 * (i - (len(layer.routes) - 1) / 2)
            below.plot([x, x], [0, route.largest], color=ORANGE, linewidth=2)
            below.plot([x, x], [route.smallest, 0], color=BLUE, linewidth=2)
    below.axhline(0, color=GREY, linewidth=0.8)
    below.set(ylabel="eigenvalues, each route")
    below.set_xticks(steps, [layer.name for layer in layers], rotation=90, fontsize=6)
    above.grid(alpha=0.3)
    above.set_title(title)
    return figure


def _panels(
    count: int, sizes: Sequence[Sequence[int]], extra: float, columns: int | None = None
) -> tuple[Figure, list[Axes]]:
    """A figure with bare panels, at most five in a row."""
    columns = columns or min(5, count)
    rows = math.ceil(count / columns)
    shape = min(2.5, max(0.4, sizes[0][0] / sizes[0][1]))
    size = (max(3.6, columns * _PANEL), rows * (_PANEL * shape + 0.45) + extra)
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for panel in panels:
        panel.set_axis_off()
    return figure, panels[:count]


def _colour_bar(figure: Figure, image: Any, panels: Sequence[Axes], label: str) -> None:
    bar = figure.colorbar(image, ax=list(panels), location="bottom", shrink=0.4, aspect=40, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
