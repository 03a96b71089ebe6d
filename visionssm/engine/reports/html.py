"""A report of predictions as one HTML file, with thumbnails inside: nothing else is needed to read it."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from ...files import write_text
from ..data.images import ImageReader
from .plots import Prediction
from .thumbnails import thumbnail


def write_report(
    predictions: Sequence[Prediction],
    path: str | Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    reader: ImageReader | None = None,
    side: int = 160,
) -> None:
    """Write a report: what the model is, how many images it takes for which class, and every image, mistakes first.

    Args:
        predictions: Of image files.
        path: HTML file.
        title: Heading.
        facts: Names and values that stand below it.
        reader: How the images are read.
        side: Longer side of the thumbnails in pixels.
    """
    reader = reader or ImageReader()
    ordered = sorted(predictions, key=lambda p: (not p.wrong, p.probabilities[0] * (-1 if p.wrong else 1)))
    cards = [
        {
            "source": _inline(thumbnail(p.path, reader, side)) if p.path else "",
            "name": "/".join(p.path.parts[-2:]) if p.path else "",
            "path": str(p.path or ""),
            "truth": p.truth,
            "wrong": p.wrong,
            "classes": [(n, 100 * v) for n, v in zip(p.names, p.probabilities, strict=True)],
        }
        for p in ordered
    ]
    known = [p for p in predictions if p.truth is not None]
    taken, images = Counter(p.names[0] for p in predictions), Counter(p.truth for p in known)
    right = Counter(p.truth for p in known if not p.wrong)
    classes = [
        {"name": name, "taken": taken[name], "images": images[name], "right": right[name]}
        for name in sorted({*taken, *(name for name in images if name)})
    ]
    environment = Environment(loader=PackageLoader(__package__), autoescape=select_autoescape(), trim_blocks=True)
    page = environment.get_template("report.html").render(
        title=title, facts=facts, cards=cards, classes=classes, known=len(known), total=len(predictions)
    )
    write_text(path, page)


def _inline(picture) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
