"""Data sets as timm creates them, with checks timm leaves out: folders, classes, and images that cannot be read."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch.utils.data
from PIL import Image
from timm.data import ImageDataset, create_dataset
from timm.data.readers import get_img_extensions

from ...errors import UserError, nearest
from .randomness import seed_everything

_logger = logging.getLogger(__name__)

SPLIT_NAMES = ({"train", "training"}, {"val", "valid", "validation", "eval", "evaluation"})
PACKAGES = {  # what timm's readers need beyond its own requirements, and how it comes
    "wds": ("webdataset", "'visionssm[data]'"),
    "hfds": ("datasets", "'visionssm[data]'"),
    "hfids": ("datasets", "'visionssm[data]'"),
    "tfds": ("tensorflow_datasets", "tensorflow-datasets tensorflow"),
}
SKIPPED = -100  # label of an image that was skipped in an evaluation


class BadImageError(UserError):
    """An image file that cannot be decoded, named by its path."""


def open_dataset(name: str, root: str | None, split: str, **options: Any) -> torch.utils.data.Dataset:
    """Create a data set through timm after checking what a folder holds.

    Args:
        name: timm data set name, "" for an image folder or tar file.
        root: Folder or file.
        split: "train", "validation", or what the data set calls it.
        options: Further arguments of `timm.data.create_dataset`.

    Raises:
        UserError: The folder or the split is missing, unreadable or without images, or a package is not installed.
    """
    package, install = PACKAGES.get(name.partition("/")[0].lower(), (None, None))
    if package and find_spec(package) is None:
        raise UserError(f"data set {name!r} needs the package {package!r}; install it with: pip install {install}")
    if name in ("", "folder"):
        root = str(find_split(root, split))
        options["search_split"] = False
    try:
        return create_dataset(name, root=root, split=split, **options)
    except UserError:
        raise
    except Exception as error:  # timm's readers raise many types; whatever it is, the data set cannot be used
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"data set {name or 'folder'!r} at {root} (split {split!r}) cannot be opened: {message}"
        ) from error


def find_split(root: str | None, split: str) -> Path:
    """Return the folder or tar file of a split inside a data folder, or the tar file given instead of a folder."""
    if not root:
        raise UserError("no data set given; name its folder with --data-dir")
    folder = Path(root)
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise UserError(f"data folder {root} does not exist")
    for archive in (folder / split, folder / f"{split}.tar"):
        if archive.is_file():
            return archive
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise UserError(f"data folder {root} cannot be read: {error.strerror}") from error
    names = next((group for group in SPLIT_NAMES if split in group), {split})
    match = split if split in found else next((name for name in found if name in names), None)
    if match is None:
        raise UserError(
            f"data folder {root} has no {split!r} folder; it holds {', '.join(found) or 'no folders'}"
            + nearest(split, found)
        )
    target = folder / match
    if not os.access(target, os.R_OK | os.X_OK):
        raise UserError(f"data folder {target} cannot be read: permission denied")
    if not has_images(target):
        raise UserError(
            f"data folder {target} holds no images; expected {match}/<class>/<image> with one of "
            + ", ".join(get_img_extensions())
        )
    return target


def has_images(folder: Path) -> bool:
    """Return whether an image or tar file lies anywhere below a folder."""
    endings = (*get_img_extensions(), ".tar")
    return any(name.lower().endswith(endings) for _, _, names in os.walk(folder, followlinks=True) for name in names)


def class_names(dataset: torch.utils.data.Dataset) -> list[str] | None:
    """Return the class names by index, or None where the data set does not tell them."""
    reader = getattr(dataset, "reader", dataset)
    mapping = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    return sorted(mapping, key=lambda name: mapping[name]) if isinstance(mapping, dict) else None


def check_same_classes(train: torch.utils.data.Dataset, validation: torch.utils.data.Dataset) -> None:
    """Raise when two splits of an image folder do not have the same classes."""
    ours, theirs = class_names(train), class_names(validation)
    if ours is None or theirs is None or ours == theirs:
        return
    missing, extra = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    raise UserError(
        f"the training split has {len(ours)} classes and the validation split {len(theirs)}"
        + (f"; only in training: {', '.join(missing[:5])}" if missing else "")
        + (f"; only in validation: {', '.join(extra[:5])}" if extra else "")
    )


def image_mode(channels: int) -> str:
    """Return the PIL mode that images are read in for a number of channels."""
    return "L" if channels == 1 else "RGB"


class ReadableImages(torch.utils.data.Dataset):
    """A map-style data set that says which image cannot be read instead of taking another in silence.

    Training reads it by `(index, epoch, copy)` and draws the augmentation from these and the seed; evaluation reads
    it by index.

    Args:
        dataset: timm ImageDataset, or any map-style data set of (PIL image, label).
        transform: Image transform.
        seed: Seed of the augmentation.
        bad_images: "refuse" raises on an unreadable image, "skip" logs its path and takes the next readable one in
            training, or marks the label with `SKIPPED` in evaluation.
        mode: PIL mode of the image in the place of a skipped one, where the data set does not convert to one.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset,
        transform: Any,
        *,
        seed: int = 0,
        bad_images: str = "refuse",
        mode: str = "RGB",
    ):
        self.dataset: Any = dataset  # torch's type has no length
        self.transform = transform
        self.seed = seed
        self.bad_images = bad_images
        self.mode = getattr(dataset, "input_img_mode", None) or mode

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int, int]) -> tuple[Any, int]:
        if isinstance(key, tuple):
            index, epoch, copy = key
            image, label = self._first_readable(index)
            seed_everything(self.seed, "sample", epoch, index, copy)
            return self.transform(image), label
        try:
            image, label = self._read(key)
        except BadImageError as error:
            if self.bad_images == "refuse":
                raise
            _logger.warning("%s; skipped", error)
            image, label = Image.new(self.mode, (8, 8)), SKIPPED
        return self.transform(image), label

    def _first_readable(self, index: int) -> tuple[Image.Image, int]:
        for offset in range(len(self)):
            try:
                return self._read((index + offset) % len(self))
            except BadImageError as error:
                if self.bad_images == "refuse":
                    raise
                _logger.warning("%s; skipped", error)
        raise UserError("no image of the data set can be read")

    def _read(self, index: int) -> tuple[Image.Image, int]:
        try:
            if not isinstance(self.dataset, ImageDataset):
                return self.dataset[index]
            file, label, *_ = self.dataset.reader[index]
            image: Image.Image = Image.open(file)
            image = image.convert(self.dataset.input_img_mode) if self.dataset.input_img_mode else image
            image.load()
        except (OSError, SyntaxError, ValueError) as error:  # what PIL raises on a damaged file
            reason = " ".join(str(error).split())
            raise BadImageError(f"image {self._path(index)} cannot be read: {reason}") from error
        return image, -1 if label is None else label

    def _path(self, index: int) -> str:
        if isinstance(self.dataset, ImageDataset):
            return str(self.dataset.filename(index, absolute=True))
        return f"number {index}"
