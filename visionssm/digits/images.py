"""Real images without a download: scikit-learn's handwritten digits as an image folder.

1797 scans of 8 x 8 pixels with 17 grey levels, from the test set of "Optical Recognition of Handwritten Digits"
(E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0).
"""

import hashlib
import json
import random
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from ..errors import UserError
from ..files import write_text

MANIFEST = "digits.json"


def digit_images(size: int) -> list[tuple[Image.Image, int]]:
    """Return all digits as RGB images of `size` x `size` pixels with their label, exact duplicates removed."""
    digits = load_digits()
    seen: set[bytes] = set()
    images = []
    for pixels, label in zip(digits.images, digits.target, strict=True):
        grey = np.rint(pixels * (255 / 16)).astype(np.uint8)
        if grey.tobytes() in seen:
            continue
        seen.add(grey.tobytes())
        image = Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC).convert("RGB")
        images.append((image, int(label)))
    return images


def split_by_class(labels: list[int], validation_share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split indices into train and validation, the same share from every class, fixed by the seed."""
    by_class = defaultdict(list)
    for index, label in enumerate(labels):
        by_class[label].append(index)
    train, validation = [], []
    for label in sorted(by_class):
        indices = by_class[label]
        random.Random(f"{seed} {label}").shuffle(indices)
        cut = round(len(indices) * validation_share)
        validation += indices[:cut]
        train += indices[cut:]
    return sorted(train), sorted(validation)


def write_classification(folder: str | Path, *, size: int = 32, validation_share: float = 0.2, seed: int = 0) -> dict:
    """Write `folder/{train,validation}/<digit>/<name>.png`.

    A folder that already holds the same data is left alone; an interrupted attempt is repeated.

    Returns:
        The manifest: settings, number of images per split, and a hash over all files.

    Raises:
        UserError: The folder holds something else.
    """
    folder = Path(folder)
    settings = {"size": size, "validation_share": validation_share, "seed": seed}
    manifest = folder / MANIFEST
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        if found["settings"] == settings and found["sha256"] == folder_hash(folder):
            return found
        shutil.rmtree(folder / "train", ignore_errors=True)
        shutil.rmtree(folder / "validation", ignore_errors=True)
        manifest.unlink()
    elif any((folder / name).exists() for name in ("train", "validation")):
        raise UserError(
            f"{folder} already holds train or validation images that were not prepared here; "
            "choose another --output or remove them"
        )

    images = digit_images(size)
    train, validation = split_by_class([label for _, label in images], validation_share, seed)
    scratch = folder / ".unfinished"
    shutil.rmtree(scratch, ignore_errors=True)
    for split, indices in (("train", train), ("validation", validation)):
        for index in indices:
            image, label = images[index]
            path = scratch / split / str(label) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    result = {
        "settings": settings,
        "images": {"train": len(train), "validation": len(validation)},
        "sha256": folder_hash(scratch),
    }
    # The manifest comes first: it marks the two folders as ours, so that an attempt cut short here is repeated.
    write_text(manifest, json.dumps(result, indent=2) + "\n")
    for split in ("train", "validation"):
        (scratch / split).rename(folder / split)
    scratch.rmdir()
    return result


def folder_hash(folder: Path) -> str:
    """Return one hash over names and contents of all images of both splits."""
    total = hashlib.sha256()
    for path in sorted(p for split in ("train", "validation") for p in (folder / split).rglob("*.png")):
        total.update(path.relative_to(folder).as_posix().encode())
        total.update(path.read_bytes())
    return total.hexdigest()
