"""Scenes of digits in the folder layouts of medical segmentation: a tiny set to try its configs with."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import write_atomically
from .images import digit_images, split_by_class
from .scenes import Scene, draw_scene

LAYOUTS = ("isic", "synapse")


def write_layout(folder: str | Path, layout: str, *, train: int = 40, validation: int = 10, seed: int = 0) -> dict:
    """Write scenes in a layout.

    "isic", as the ISIC archive names files: `folder/{train,val}/images/ISIC_0000000.jpg` with
    `folder/{train,val}/masks/ISIC_0000000_segmentation.png`, 255 where a digit is.
    "synapse", as TransUNet prepares it: `folder/{train,val}_npz/case0000_slice000.npz` with `image`, float32
    (h, w) of values in [0, 1], and `label`, uint8 (h, w): 0, or the digit (1 to 8; 0 and 9 are background).

    Args:
        folder: Where to write; it must not exist, or be empty.
        layout: One of `LAYOUTS`.
        train: Scenes to train on.
        validation: Scenes held out.
        seed: Fixes everything; the splits share no digit.

    Returns:
        Number of scenes by split.

    Raises:
        UserError: The folder holds something, or a number of scenes is not positive.
    """
    folder = Path(folder)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if min(train, validation) < 1:
        raise UserError(f"each split needs at least one scene, got {train} to train on and {validation} held out")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; choose another --output")
    write = _write_masks if layout == "isic" else _write_slice
    digits = digit_images(8)
    pools = split_by_class([label for _, label in digits], 0.2, seed)
    for number, (split, pool, count) in enumerate(zip(("train", "val"), pools, (train, validation), strict=True)):
        for index in range(count):
            scene = draw_scene([digits[i] for i in pool], np.random.default_rng([seed, number, index]))
            write(folder, split, index, scene)
    return {"train": train, "val": validation}


def _write_masks(folder: Path, split: str, index: int, scene: Scene) -> None:
    mask = Image.fromarray((scene.label_map > 0).astype(np.uint8) * 255)
    image = Image.fromarray(scene.image)
    name = f"ISIC_{index:07d}"
    write_atomically(folder / split / "images" / f"{name}.jpg", lambda file: image.save(file, "JPEG", quality=95))
    write_atomically(folder / split / "masks" / f"{name}_segmentation.png", lambda file: mask.save(file, "PNG"))


def _write_slice(folder: Path, split: str, index: int, scene: Scene) -> None:
    grey = np.asarray(Image.fromarray(scene.image).convert("L"), np.float32) / 255
    digit = scene.label_map.astype(np.int16) - 1
    label = np.where((digit >= 1) & (digit <= 8), digit, 0).astype(np.uint8)
    path = folder / f"{split}_npz" / f"case{index // 20:04d}_slice{index % 20:03d}.npz"
    write_atomically(path, lambda file: np.savez_compressed(file, image=grey, label=label))
