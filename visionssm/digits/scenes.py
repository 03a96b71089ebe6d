"""Scenes of several real handwritten digits with boxes, masks and label maps: detection and segmentation sets."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import write_text
from .images import digit_images, split_by_class

CLASSES = tuple(str(digit) for digit in range(10))
SPLITS = ("train", "validation")
MANIFEST = "scenes.json"

_HEIGHTS, _WIDTHS = (96, 136), (112, 168)  # of a scene, in pixels, both ends included
_DIGITS = (2, 5)  # in a scene
_SIDES = (28, 56)  # of the square that a digit is drawn in
_INK = 0.4  # share of ink from which a pixel belongs to a digit
_OVERLAP = 0.15  # largest share of a digit's square that another's may cover
_ATTEMPTS = 20  # to find a place for a digit


@dataclass
class Scene:
    """An image with its digits.

    Attributes:
        image: uint8 (height, width, 3).
        labels: Digit of each instance.
        masks: Visible pixels of each instance, bool (instances, height, width); they do not overlap.
    """

    image: np.ndarray
    labels: list[int]
    masks: np.ndarray

    @property
    def label_map(self) -> np.ndarray:
        """uint8 (height, width): 0 for the background, digit + 1 for a digit."""
        result = np.zeros(self.image.shape[:2], np.uint8)
        for label, mask in zip(self.labels, self.masks, strict=True):
            result[mask] = label + 1
        return result


def write_scenes(folder: str | Path, *, train: int = 800, validation: int = 100, seed: int = 0) -> dict:
    """Write scenes with annotations for detection and segmentation.

    `folder/images/{train,validation}/*.png` are the scenes, of varying size, `folder/instances_*.json` their boxes
    and masks in COCO's layout, and `folder/annotations/{train,validation}/*.png` their label maps in that of ADE20K,
    with 0 for the background as a class of its own. The splits share no digit. A folder that already holds the same
    data is left alone; an interrupted attempt is repeated.

    Args:
        folder: Where to write.
        train: Scenes to train on.
        validation: Scenes held out.
        seed: Fixes everything.

    Returns:
        The manifest: settings, number of scenes and of digits per split, a hash over all files.

    Raises:
        UserError: The folder holds something else, or a number of scenes is not positive.
    """
    folder = Path(folder)
    if min(train, validation) < 1:
        raise UserError(f"each split needs at least one scene, got {train} to train on and {validation} held out")
    settings = {"train": train, "validation": validation, "seed": seed}
    manifest = folder / MANIFEST
    parts = ["images", "annotations", *(f"instances_{split}.json" for split in SPLITS)]
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        if found["settings"] == settings and found["sha256"] == _hash(folder, parts):
            return found
        for part in parts:
            _remove(folder / part)
        manifest.unlink()
    elif any((folder / part).exists() for part in parts):
        raise UserError(
            f"{folder} already holds images or annotations that were not prepared here; choose another --output or "
            "remove them"
        )

    digits = digit_images(8)
    indices = split_by_class([label for _, label in digits], 0.2, seed)
    scratch = folder / ".unfinished"
    _remove(scratch)
    counts = {}
    for number, (split, pool, scenes) in enumerate(zip(SPLITS, indices, (train, validation), strict=True)):
        pool_digits = [digits[i] for i in pool]
        counts[split] = _write_split(scratch, split, pool_digits, scenes, [seed, number])
    result = {
        "settings": settings,
        "images": {"train": train, "validation": validation},
        "digits": counts,
        "sha256": _hash(scratch, parts),
    }
    # The manifest comes first: it marks the rest as ours, so that an attempt cut short here is repeated.
    write_text(manifest, json.dumps(result, indent=2) + "\n")
    for part in parts:
        (scratch / part).rename(folder / part)
    scratch.rmdir()
    return result


def draw_scene(digits: Sequence[tuple[Image.Image, int]], rng: np.random.Generator) -> Scene:
    """Draw a scene of some of the digits on a background of random colours."""
    height, width = (int(rng.integers(*ends, endpoint=True)) for ends in (_HEIGHTS, _WIDTHS))
    canvas = _background(height, width, rng)
    labels: list[int] = []
    masks: list[np.ndarray] = []
    for top, left, side in _places(height, width, rng):
        glyph, label = digits[int(rng.integers(len(digits)))]
        ink = np.asarray(glyph.convert("L").resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
        patch = canvas[top : top + side, left : left + side]
        patch += ink[:, :, None] * (_ink_colour(patch, rng) - patch)
        mask = np.zeros((height, width), bool)
        mask[top : top + side, left : left + side] = ink > _INK
        masks = [other & ~mask for other in masks] + [mask]
        labels.append(label)
    noise = rng.normal(0, rng.uniform(0, 8), canvas.shape)
    return Scene(np.clip(canvas + noise, 0, 255).round().astype(np.uint8), labels, np.stack(masks))


def _places(height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Squares (top, left, side) that hardly overlap; at least one."""
    places: list[tuple[int, int, int]] = []
    for _ in range(int(rng.integers(*_DIGITS, endpoint=True))):
        side = int(rng.integers(*_SIDES, endpoint=True))
        for _ in range(_ATTEMPTS):
            place = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side
            if all(_overlap(place, other) <= _OVERLAP for other in places):
                places.append(place)
                break
    return places


def _overlap(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Area that two squares share, as a share of the smaller one."""
    rows, columns = (min(one[i] + one[2], other[i] + other[2]) - max(one[i], other[i]) for i in (0, 1))
    return max(rows, 0) * max(columns, 0) / min(one[2], other[2]) ** 2


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A few random colours blended smoothly, float32 (height, width, 3)."""
    corners = rng.integers(0, 160, (int(rng.integers(2, 6)), int(rng.integers(2, 6)), 3), dtype=np.uint8)
    return np.array(Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _ink_colour(patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A colour brighter than the background it is put on."""
    lowest = np.minimum(patch.mean((0, 1)) + 80, 230)
    return rng.uniform(lowest, 255).astype(np.float32)


def _write_split(
    folder: Path, split: str, digits: Sequence[tuple[Image.Image, int]], scenes: int, seed: list[int]
) -> int:
    """Write one split and return its number of digits."""
    images: list[dict] = []
    instances: list[dict] = []
    for part in ("images", "annotations"):
        (folder / part / split).mkdir(parents=True)
    for index in range(scenes):
        scene = draw_scene(digits, np.random.default_rng([*seed, index]))
        name = f"{index:04d}.png"
        Image.fromarray(scene.image).save(folder / "images" / split / name)
        Image.fromarray(scene.label_map).save(folder / "annotations" / split / name)
        height, width = scene.image.shape[:2]
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            instances.append(
                {
                    "id": len(instances) + 1,  # COCO's evaluation takes 0 for "no match"
                    "image_id": index,
                    "category_id": label + 1,
                    "bbox": _box(mask),
                    "area": int(mask.sum()),
                    "segmentation": _run_lengths(mask),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "annotations": instances, "categories": categories}
    write_text(folder / f"instances_{split}.json", json.dumps(content) + "\n")
    return len(instances)


def _box(mask: np.ndarray) -> list[int]:
    """COCO's box of a mask: left, top, width, height."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a mask: by columns, beginning with the zeros."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def _hash(folder: Path, parts: Sequence[str]) -> str:
    """One hash over names and contents of all files."""
    files = [p for part in parts for p in [folder / part, *(folder / part).rglob("*")] if p.is_file()]
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(path.read_bytes())
    return total.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
