"""Pictures of scan orders: the path of every route over the map."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from ..scans import num_routes, scan_table

COLORS = LinearSegmentedColormap.from_list("path", matplotlib.colormaps["plasma"](np.linspace(0.0, 0.86, 256)))
START, END, JUMP = "#1a9850", "#d73027", "#8c8c8c"
LATTICE, PADDING, PADDING_LINES = "#d8d8d8", "#ececec", "#bdbdbd"

_PANEL = 2.6  # inches
_MAX_ARROWS = 80  # per route


def draw_scans(names: Sequence[str], height: int, width: int) -> Figure:
    """Draw every route of scan orders: colour from first step to last, arrows, start and end, jumps, zero tokens.

    Args:
        names: Names of scan orders, each drawn under its own heading.
        height: Rows of the map.
        width: Columns of the map.

    Raises:
        ValueError: no name is given, or one is unknown.
    """
    if not names:
        raise ValueError("found no scan order to draw; expected at least one name")
    paths = [[path for part in name.split("+") for path in _paths(part, height, width)] for name in names]
    titles = [_titles(name) for name in names]
    columns = min(4, max(map(len, paths)))
    rows = [math.ceil(len(routes) / columns) for routes in paths]
    panel = _PANEL * min(2.5, max(0.2, height / width))
    heights = [0.45 + (panel + (0.4 if len(routes) > 1 else 0.15)) * n for routes, n in zip(paths, rows, strict=True)]
    size = (max(4.6, columns * (_PANEL + 0.25)), sum(heights) + 0.75)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    blocks = figure.subfigures(len(names) + 1, 1, height_ratios=[*heights, 0.75], squeeze=False)[:, 0]
    for block, name, routes, title, n in zip(blocks, names, paths, titles, rows, strict=False):
        _draw_order(block, name, routes, title, height, width, (n, min(columns, len(routes))))
    every = [path for routes in paths for path in routes]
    _draw_key(
        blocks[-1],
        size[0],
        jumps=any(_jumps(path).any() for path in every),
        zero_tokens=any(
            path.max(axis=0, initial=0)[axis] >= side for path in every for axis, side in enumerate((height, width))
        ),
    )
    return figure


def _draw_order(
    block: SubFigure,
    name: str,
    paths: list[np.ndarray],
    titles: list[str],
    height: int,
    width: int,
    grid: tuple[int, int],
) -> None:
    routes = f"{len(paths)} routes" if len(paths) > 1 else "1 route"
    heading = name if len(name) <= 60 else f"{name.split('+')[0]}+…"  # the panels name the rest
    block.suptitle(f"{heading}   {height} × {width}, {routes}", fontsize=11, fontweight="bold")
    panels = block.subplots(*grid, squeeze=False).flatten()
    longest = scan_table(name, height, width).shape[1]
    rows, columns = np.max([path.max(axis=0) + 1 for path in paths] + [np.array([height, width])], axis=0)
    for panel in panels:
        panel.set(xlim=(-0.6, columns - 0.4), ylim=(rows - 0.4, -0.6), aspect="equal")
        panel.set_axis_off()
    for panel, path, title in zip(panels, paths, titles, strict=False):
        _draw_lattice(panel, path, height, width)
        _draw_route(panel, path, side=_PANEL * 72 / max(rows, columns))
        left = longest - len(path)
        panel.set_title(title + (f", then {left} zero tokens" if left else ""), fontsize=9)


def _titles(name: str) -> list[str]:
    """A heading for each route: its name in a composed order, its number in an order of several routes."""
    parts = name.split("+")
    titles: list[str] = []
    for part in parts:
        routes = num_routes(part)
        numbers = [f"route {len(titles) + i}" for i in range(routes)]
        titles += numbers if len(parts) == 1 else [part] if routes == 1 else [f"{part}: {n}" for n in numbers]
    return titles if len(titles) > 1 else [""]


def _paths(part: str, height: int, width: int) -> list[np.ndarray]:
    """Row and column at every step of each route, (steps, 2); zero tokens lie beyond the map's right or lower border.

    Where a zero token lies is not in the table. An order that pads is the same order on the padded map, whose size is
    found by trying.
    """
    table = scan_table(part, height, width).numpy()
    if (table >= 0).all():
        return [np.stack(np.divmod(route, width), axis=1) for route in table]
    steps = table.shape[1]
    for total in (steps, table.size):  # each route visits all of the padded map, or they share it
        for rows in range(height, total // width + 1):
            if total % rows == 0 and total // rows >= width:
                row, column = np.divmod(scan_table(part, rows, total // rows).numpy(), total // rows)
                if row.shape != table.shape or (row < 0).any():
                    continue
                cut = np.where((row < height) & (column < width), row * width + column, -1)
                if (cut == table).all():
                    return list(np.stack([row, column], axis=2))
    # the order pads in its own way: leave the zero tokens out
    return [np.stack(np.divmod(route[route >= 0], width), axis=1) for route in table]


def _jumps(path: np.ndarray) -> np.ndarray:
    """Which moves are much longer than the route's usual one."""
    lengths = np.linalg.norm(np.diff(path, axis=0), axis=1)
    return lengths > 1.5 * np.median(lengths) if len(lengths) else lengths > 0


def _draw_lattice(panel: Axes, path: np.ndarray, height: int, width: int) -> None:
    rows, columns = np.maximum(path.max(axis=0) + 1, (height, width))
    if rows > height or columns > width:
        panel.add_patch(
            Rectangle(
                (-0.5, -0.5),
                columns,
                rows,
                facecolor=PADDING,
                edgecolor=PADDING_LINES,
                hatch="////",
                linewidth=0,
                zorder=0,
            )
        )
        panel.add_patch(Rectangle((-0.5, -0.5), width, height, facecolor="white", linewidth=0, zorder=0.1))
    lines = [[(x - 0.5, -0.5), (x - 0.5, rows - 0.5)] for x in range(columns + 1)]
    lines += [[(-0.5, y - 0.5), (columns - 0.5, y - 0.5)] for y in range(rows + 1)]
    panel.add_collection(LineCollection(lines, colors=LATTICE, linewidths=0.5, zorder=0.5))
    panel.add_patch(Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="#505050", linewidth=1.0, zorder=0.6))


def _draw_route(panel: Axes, path: np.ndarray, side: float) -> None:
    """Draw a path over cells whose sides measure `side` points."""
    points = path[:, ::-1].astype(float)  # x, y
    segments = np.stack([points[:-1], points[1:]], axis=1)
    colors = COLORS(np.linspace(0.0, 1.0, max(len(segments), 1)))[: len(segments)]
    jump = _jumps(path)
    line = min(2.2, max(0.7, side / 10))
    panel.add_collection(
        LineCollection(segments[jump], colors=JUMP, linewidths=0.45 * line, linestyles=(0, (3, 2)), zorder=1)
    )
    panel.add_collection(
        LineCollection(segments[~jump], colors=colors[~jump], linewidths=line, capstyle="round", zorder=2)
    )
    for kind in (False, True):
        chosen = np.flatnonzero(jump == kind)
        for index in chosen[:: max(1, math.ceil(len(chosen) / _MAX_ARROWS))]:
            start, end = segments[index]
            _draw_arrow(panel, start, end, JUMP if kind else colors[index], (2.5 if kind else 3.6) * line + 1.5)

    mark = min(9.0, max(4.0, side / 2.8))
    edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.8, "linestyle": "none", "zorder": 5}
    panel.plot(*points[-1], "s", color=END, markersize=mark, **edge)
    panel.plot(*points[0], "o", color=START, markersize=mark if len(points) > 1 else 0.6 * mark, **edge)


def _draw_arrow(panel: Axes, start: np.ndarray, end: np.ndarray, color, size: float) -> None:
    """An arrow head in the middle of a move; `size` is its length in points."""
    middle, direction = (start + end) / 2, (end - start) / np.linalg.norm(end - start)
    angle = math.degrees(math.atan2(-direction[1], direction[0]))  # the y axis points down
    panel.plot(*middle, marker=(3, 0, angle - 90), color=color, markersize=size, markeredgewidth=0, zorder=3)


def _draw_key(block: SubFigure, width: float, jumps: bool, zero_tokens: bool) -> None:
    """Legend and colour bar, in a strip of `width` inches."""
    edge: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white", "markersize": 8}
    handles: list[Artist] = [
        Line2D([], [], color=START, marker="o", label="start", **edge),
        Line2D([], [], color=END, marker="s", label="end", **edge),
    ]
    if jumps:
        handles.append(Line2D([], [], color=JUMP, linestyle=(0, (3, 2)), linewidth=1.2, label="jump"))
    if zero_tokens:
        handles.append(Patch(facecolor=PADDING, edgecolor=PADDING_LINES, hatch="////", label="zero token"))
    block.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    bar = block.add_axes((0.5 - 1.0 / width, 0.68, 2.0 / width, 0.14))
    bar.imshow(np.linspace(0, 1, 256)[None], cmap=COLORS, aspect="auto")
    bar.set_axis_off()
    bar.text(-0.03, 0.5, "first step", transform=bar.transAxes, ha="right", va="center", fontsize=9)
    bar.text(1.03, 0.5, "last step", transform=bar.transAxes, ha="left", va="center", fontsize=9)
