"""Predictions for image files: as a table, as CSV, as a picture."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from ...errors import UserError
from ..data.images import BadImageError, ChannelTransform, ImageReader, endings, taken_and_passed_over
from ..reports.plots import Prediction
from .classifier import Classifier

_logger = logging.getLogger(__name__)

Picture = str | Path | Image.Image | np.ndarray


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Return image files: those named and, sorted, those below named folders; says how many, and what it passed over.

    Raises:
        UserError: A place does not exist, or there is no image anywhere.
    """
    wanted = endings()
    found: list[Path] = []
    present: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            files = sorted(path for path in place.rglob("*") if path.is_file())
            found += [path for path in files if path.suffix.lower() in wanted]
            present += files
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f"{place} does not exist")
    if not found:
        raise UserError(f"no images in {', '.join(map(str, places))}; expected files with {', '.join(wanted)}")
    if present:
        _logger.info("%s: %s", ", ".join(map(str, places)), taken_and_passed_over(found, present))
    return found


def truth_of(path: Path, classifier: Classifier) -> str | None:
    """Return the class that the folder of an image names, as in an image folder, or None."""
    index = (classifier.class_map or {}).get(path.parent.name)
    return None if index is None else name_of(index, classifier)


def name_of(index: int, classifier: Classifier) -> str:
    """Return what a class is called; its number where it has no name."""
    known = classifier.classes or []
    return known[index] if index < len(known) else str(index)


@torch.inference_mode()
def predict(
    classifier: Classifier,
    pictures: Sequence[Picture],
    *,
    topk: int | None = 5,
    batch_size: int = 64,
    bad_images: str = "refuse",
) -> list[Prediction]:
    """Classify images.

    Args:
        classifier: Trained classifier.
        pictures: Image files, Pillow images or uint8 arrays (height, width, channels).
        topk: Classes to return per image; None for all.
        batch_size: Images per forward pass.
        bad_images: "refuse" raises on a file that cannot be read, "skip" logs it and leaves it out.

    Raises:
        BadImageError: A file cannot be read.
        UserError: `topk` or `batch_size` is less than 1.
    """
    if (topk is not None and topk < 1) or batch_size < 1:
        raise UserError(f"topk and batch_size are at least 1, got {topk} and {batch_size}")
    config = classifier.data_config
    transform = create_transform(
        config["input_size"],
        is_training=False,
        use_prefetcher=True,
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
    for note in classifier.reader.notes([p for p in pictures if isinstance(p, (str, Path))]):
        _logger.info("%s", note)
    device = next(classifier.model.parameters()).device
    in_channels = ChannelTransform(transform)
    mean, std = (255 * torch.tensor(config[name], device=device).view(-1, 1, 1) for name in ("mean", "std"))
    results: list[Prediction] = []
    for start in range(0, len(pictures), batch_size):
        kept: list[Path | None] = []
        images = []
        for number, picture in enumerate(pictures[start : start + batch_size], start):
            try:
                images.append(torch.as_tensor(in_channels(_read(classifier.reader, picture, number))))
                kept.append(Path(picture) if isinstance(picture, (str, Path)) else None)
            except BadImageError as error:
                if bad_images == "refuse":
                    raise
                _logger.warning("%s; skipped", error)
        if not kept:
            continue
        probabilities = classifier.model((torch.stack(images).to(device) - mean) / std).float().softmax(-1).cpu()
        best = probabilities.topk(min(topk or probabilities.shape[-1], probabilities.shape[-1]))
        for path, values, indices in zip(kept, best.values.tolist(), best.indices.tolist(), strict=True):
            names = [name_of(index, classifier) for index in indices]
            results.append(Prediction(path, names, values, truth_of(path, classifier) if path else None))
    return results


def _read(reader: ImageReader, picture: Picture, number: int) -> Any:
    if isinstance(picture, (str, Path)):
        return reader.read(picture, str(picture))
    name = f"number {number}"
    if isinstance(picture, np.ndarray):
        array = picture
        try:
            picture = Image.fromarray(array)
        except (TypeError, ValueError) as error:
            raise BadImageError(f"image {name} is an array {array.shape} of {array.dtype}: {error}") from error
    if not isinstance(picture, Image.Image):
        raise BadImageError(f"image {name} is a {type(picture).__name__}, expected a path, Pillow image or array")
    return reader.convert(picture, name)


def read_image(path: Path, mode: str) -> Image.Image:
    """Read an image file completely, in a mode of one or three channels.

    Raises:
        BadImageError: It cannot be decoded or used.
    """
    image = ImageReader(1 if mode == "L" else 3, mode).read(path, str(path))
    assert isinstance(image, Image.Image)
    return image


def table(predictions: Sequence[Prediction], limit: int | None = None) -> str:
    """Return a readable table, mistakes first; at most `limit` rows unless there are more mistakes."""
    mistakes = [p for p in predictions if p.wrong]
    rows = mistakes + [p for p in predictions if not p.wrong]
    if limit is not None:
        rows = rows[: max(limit, len(mistakes))]
    with_truth = any(p.truth is not None for p in rows)
    header = ["image", *(["truth"] if with_truth else []), "prediction", "", "then"]
    cells = [
        [
            str(p.path),
            *([p.truth or "?"] if with_truth else []),
            p.names[0] + ("  WRONG" if p.wrong else ""),
            f"{100 * p.probabilities[0]:5.1f} %",
            ", ".join(
                f"{name} {100 * value:.1f} %" for name, value in zip(p.names[1:3], p.probabilities[1:3], strict=True)
            ),
        ]
        for p in rows
    ]
    widths = [max(len(row[i]) for row in (header, *cells)) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, ["-" * width for width in widths], *cells)
    ]
    if len(rows) < len(predictions):
        lines.append(f"... and {len(predictions) - len(rows)} more")
    return "\n".join(lines)


def rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return a row per image: its path, the truth where it is known, and the best classes with their probabilities."""
    return [
        {"image": str(p.path), "truth": p.truth or ""}
        | {
            key: value
            for i, (name, probability) in enumerate(zip(p.names, p.probabilities, strict=True), 1)
            for key, value in ((f"class_{i}", name), (f"probability_{i}", probability))
        }
        for p in predictions
    ]
