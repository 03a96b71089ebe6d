"""Draw the zoo: published top-1 against multiply-adds, and against the time that a CPU takes.

    python benchmarks/zoo.py [--times benchmarks/results/cpu_models.md] [--output docs/pictures/zoo.png]

A point for each variant, a colour and marker for each family, filled where the published images are 224 x 224. Top-1 is
quoted from the model cards (ImageNet-1K, its source stands there), multiply-adds are those that the cards' tables hold
(`python tools/model_cards.py` counts them), times those of the table that `benchmarks/cpu_models.py` wrote, of one
thread and one image.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from visionssm.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
# colour-blind-safe (Okabe and Ito, without the yellow, which is faint on white), each with several markers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Variant:
    """A published variant.

    Attributes:
        name: Its name.
        family: Title of its card.
        side: Height of its published images.
        gmacs: Multiply-adds, in 10^9.
        top1: Published accuracy, in percent.
        milliseconds: Of one image on a CPU, where it was measured.
    """

    name: str
    family: str
    side: int
    gmacs: float
    top1: float
    milliseconds: float | None = None


def table_rows(text: str) -> list[dict[str, str]]:
    """Rows of the Markdown tables of a text; of two columns of one name the first."""
    rows, head = [], []
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            head = []
        elif not head:
            head = cells
        elif not set(line) <= set("|-: "):
            rows.append(dict(zip(reversed(head), reversed(cells), strict=False)))
    return rows


def times(text: str) -> dict[str, float]:
    """Milliseconds of one image in one thread, by model, of a table of `cpu_models.py`."""
    rows = [row for row in table_rows(text) if "ms per image" in row]
    return {row["model"]: float(row["ms per image"]) for row in rows if (row["threads"], row["batch"]) == ("1", "1")}


def variants(cards: Path, measured: dict[str, float]) -> list[Variant]:
    """Every variant whose accuracy on ImageNet-1K is published."""
    found = []
    for path in sorted(cards.glob("*.json")):
        card = json.loads(path.read_text())
        for row in table_rows(path.with_suffix(".md").read_text()):
            figures = card["variants"].get(row.get("model", ""), {})
            if "top1" in figures and "GMACs" in row:
                side = int(row["input"].split()[0])
                time = measured.get(row["model"])
                found.append(Variant(row["model"], card["title"], side, float(row["GMACs"]), figures["top1"], time))
    return found


def draw(found: list[Variant]) -> Figure:
    """The two panels, with each family's name at one of its points."""
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.02})
    families = list(dict.fromkeys(v.family for v in found))
    styles = dict(zip(families, product(MARKERS, COLOURS), strict=False))
    for axes, place, label in (
        (panels[0], lambda v: v.gmacs, "multiply-adds at the published size (10$^9$)"),
        (panels[1], lambda v: v.milliseconds, "milliseconds of one image on a CPU, one thread"),
    ):
        axes.set(xscale="log", xlabel=label)
        axes.grid(alpha=0.25, which="both")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        points = {}
        for family in families:
            marker, colour = styles[family]
            own = sorted((place(v), v.top1, v.side) for v in found if v.family == family and place(v) is not None)
            if not own:
                continue
            axes.plot([p[0] for p in own], [p[1] for p in own], color=colour, linewidth=0.8, alpha=0.5)
            for x, y, side in own:
                face = colour if side == 224 else "white"
                axes.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=7, linestyle="none")
            points[family] = [(x, y) for x, y, _ in own]
        axes.margins(x=0.08, y=0.06)
        label_points(figure, axes, points, {family: styles[family][1] for family in points})
    panels[0].set_ylabel("published top-1 on ImageNet-1K (%)")
    timed = sum(v.milliseconds is not None for v in found)
    figure.suptitle(
        f"{len(found)} variants of {len(families)} families, {timed} of them timed; "
        "filled: images of 224 x 224; above 87 % with ImageNet-21K",
        fontsize=11,
    )
    return figure


def label_points(figure: Figure, axes, points: dict[str, list[tuple[float, float]]], colours: dict[str, str]) -> None:
    """Write each name beside one of its points where it covers nothing; the names of most points choose last."""
    figure.draw_without_rendering()
    renderer = cast(FigureCanvasAgg, figure.canvas).get_renderer()
    taken = []
    for own in points.values():
        for x, y in axes.transData.transform(own):
            taken.append(Bbox.from_bounds(x - 7, y - 7, 14, 14))
    frame = axes.get_window_extent()
    for name, own in sorted(points.items(), key=lambda item: len(item[1])):
        text = axes.annotate(
            name, own[0], (0, 0), textcoords="offset points", fontsize=9, color=colours[name], fontweight="bold"
        )
        box = text.get_window_extent(renderer)
        best = None
        for distance, (x, y), (right, up) in product(
            (9, 16, 26, 40), own, ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
        ):
            px, py = axes.transData.transform((x, y))
            corner = (
                px + right * distance - (box.width if right < 0 else 0 if right else box.width / 2),
                py + up * distance - (box.height if up < 0 else 0 if up else box.height / 2),
            )
            here = Bbox.from_bounds(*corner, box.width, box.height)
            inside = frame.x0 < here.x0 and here.x1 < frame.x1 and frame.y0 < here.y0 and here.y1 < frame.y1
            covered = sum(overlap(here, other) for other in taken) + (0 if inside else 1e6)
            if best is None or covered < best[0]:
                best = covered, here, (x, y), (px, py)
            if covered == 0:
                break
        _, here, anchor, (px, py) = best
        text.remove()
        scale = 72 / figure.dpi
        axes.annotate(
            name,
            anchor,
            ((here.x0 - px) * scale, (here.y0 - py) * scale),
            textcoords="offset points",
            fontsize=9,
            color=colours[name],
            fontweight="bold",
            gid=f"label {name}",
        )
        taken.append(here)


def overlap(a: Bbox, b: Bbox) -> float:
    """Area that two boxes share."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0.0) * max(height, 0.0)


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=Path, default=ROOT / "benchmarks/results/cpu_models.md", metavar="FILE")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/pictures/zoo.png", metavar="PNG")
    args = parser.parse_args(list(arguments) if arguments is not None else None)
    if not args.times.is_file():
        sys.exit(f"zoo: there is no {args.times}; python benchmarks/cpu_models.py --output FILE writes one")
    found = variants(ROOT / "model_cards", times(args.times.read_text()))
    figure = draw(found)
    write_atomically(args.output, lambda file: figure.savefig(file, format="png", dpi=90))
    missing = sorted({v.family for v in found if v.milliseconds is None} - {v.family for v in found if v.milliseconds})
    print(f"{args.output}: {len(found)} variants" + (f"; not timed: {', '.join(missing)}" if missing else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
