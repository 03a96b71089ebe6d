"""Data sets as timm creates them, with checks timm leaves out: folders, classes, and images that cannot be read."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch.utils.data
from PIL import Image
from timm.data import ImageDataset, create_dataset
from timm.data.readers import get_img_extensions, set_img_extensions
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader_image_folder import ReaderImageFolder

from ...errors import UserError, nearest
from .images import BadImageError, ImageReader, Planes, count_endings, endings, taken_and_passed_over
from .own_images import HOLD_OUT, SPLIT_NAMES, OwnImages, divide, open_table, part_of, undivided
from .randomness import seed_everything

_logger = logging.getLogger(__name__)

PACKAGES = {  # what timm's readers need beyond its own requirements, and how it comes
    "wds": ("webdataset", "'visionssm[data]'"),
    "hfds": ("datasets", "'visionssm[data]'"),
    "hfids": ("datasets", "'visionssm[data]'"),
    "tfds": ("tensorflow_datasets", "tensorflow-datasets tensorflow"),
}
SKIPPED = -100  # label of an image that was skipped in an evaluation


def open_dataset(
    name: str,
    root: str | None,
    split: str,
    *,
    val_fraction: float | None = None,
    labels_file: str | None = None,
    **options: Any,
) -> torch.utils.data.Dataset:
    """Create a data set through timm after checking what a folder holds; says how many images it takes.

    Args:
        name: timm data set name, "" for an image folder or tar file.
        root: Folder or file.
        split: "train", "validation", or what the data set calls it.
        val_fraction: Part of each class of a folder that is held out where it has no validation split.
        labels_file: CSV table of a folder's images and their classes.
        options: Further arguments of `timm.data.create_dataset`.

    Raises:
        UserError: The folder or the split is missing, unreadable or without images, or a package is not installed.
    """
    kind = name.partition("/")[0].lower()
    package, install = PACKAGES.get(kind, (None, None))
    if package and find_spec(package) is None:
        raise UserError(f"data set {name!r} needs the package {package!r}; install it with: pip install {install}")
    whole = None
    if name in ("", "folder"):
        if labels_file:
            return open_table(root, split, labels_file, val_fraction, options.get("class_map"))
        whole = undivided(root, split) if val_fraction is not None else None
        root = str(whole or find_split(root, split))
        options["search_split"] = False
    elif labels_file:
        raise UserError(f"--labels names the classes of a folder's images; data set {name!r} has labels of its own")
    if kind != "tfds":  # its reader makes images from arrays, for which it has to know the mode
        options["input_img_mode"] = ""  # ImageReader converts, after it has looked at the values
    try:
        with _all_endings():
            dataset = create_dataset(name, root=root, split=split, **options)
        if whole is not None and val_fraction is not None:
            dataset = divide(dataset, whole, split, val_fraction)
    except UserError:
        raise
    except Exception as error:  # timm's readers raise many types; whatever it is, the data set cannot be used
        message = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"data set {name or 'folder'!r} at {root} (split {split!r}) cannot be opened: {message}"
        ) from error
    if kind == "wds":
        _name_classes(dataset.reader)
    return dataset


def _name_classes(reader: Any) -> None:
    """Tell a reader of shards the names of their classes, where the shards' own list has them."""
    names = reader.info.get("class_to_idx")
    if names and not reader.target_keys:
        reader._source_names = {index: name for name, index in names.items()}
        if not reader.remap_class:
            reader.class_to_idx = dict(names)


def open_by_names(
    name: str,
    root: str | None,
    split: str,
    known: Mapping[str, int] | None,
    *,
    always: bool = False,
    source: str = "the model",
    **options: Any,
) -> torch.utils.data.Dataset:
    """Open a data set whose labels are mapped by the names of its classes to the indices that a model knows.

    Args:
        name: As for `open_dataset`.
        root: As for `open_dataset`.
        split: As for `open_dataset`.
        known: Class names to indices; None takes the labels as they are.
        always: Map even where the data set does not tell its classes: its labels are the names.
        source: What knows the classes, for errors.
        options: Further arguments of `open_dataset`.

    Raises:
        UserError: The data set has a class that the model does not know; the message has both lists.
    """
    if known is None:
        return open_dataset(name, root, split, **options)
    if always and name.partition("/")[0].lower() in ("hfds", "hfids"):
        return open_dataset(name, root, split, **options | {"class_map": dict(known)})
    dataset = open_dataset(name, root, split, **options)
    found = class_mapping(dataset)
    if not found or found == dict(known):
        return dataset
    unknown = sorted(set(found) - set(known))
    if unknown:
        missing = sorted(set(known) - set(found))
        raise UserError(
            f"{source} does not know {len(unknown)} class(es) of the data: {_listed(unknown)}; it knows "
            f"{_listed(sorted(known))}"
            + (f"; only in {source}: {_listed(missing)}; only in the data: {_listed(unknown)}" if missing else "")
            + "; rename the folders, or map their names to indices with --class-map FILE"
        )
    if not isinstance(dataset, (ImageDataset, torch.utils.data.IterableDataset)):
        raise UserError(
            f"data set {name!r} numbers its classes otherwise than {source} and cannot be told; found "
            f"{_listed(sorted(found, key=lambda key: found[key]))}, expected {_listed(sorted(known))}"
        )
    return open_dataset(name, root, split, **options | {"class_map": dict(known)})


def read_class_map(file: str, *folders: str | None) -> dict[str, int]:
    """Read a class map: a name per line, or a pickled dictionary of names to indices.

    Args:
        file: Path, from here or from one of the folders.
        folders: Where else it may lie.

    Raises:
        UserError: There is no such file, or it holds something else.
    """
    places = [Path(file), *(Path(folder) / file for folder in folders if folder)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"--class-map {file} does not exist")
    try:
        mapping = {name: int(index) for name, index in load_class_map(str(path)).items() if name != ""}
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--class-map {file} cannot be read: {reason}; expected a .txt file, a name per line"
        ) from error
    if not mapping or min(mapping.values()) < 0:
        raise UserError(f"--class-map {file} has no names, or negative indices")
    return mapping


def check_indices(given: Mapping[str, int], total: int, what: str) -> None:
    """Raise where a class map has more indices than a model classes."""
    if max(given.values()) >= total:
        raise UserError(f"{what} goes up to index {max(given.values())}, but the model has {total} classes, 0 to n - 1")


@contextmanager
def _all_endings() -> Iterator[None]:
    """Let timm's readers take every file that is read here."""
    before = get_img_extensions()
    set_img_extensions(endings())
    try:
        yield
    finally:
        set_img_extensions(before)


def _listed(names: list[str], most: int = 20) -> str:
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)})" if len(names) > most else "")


def log_taken(dataset: torch.utils.data.Dataset, what: str, images: ImageReader) -> None:
    """Log how many images a data set takes and how many files of its folder it passes over, by ending."""
    reader = getattr(dataset, "reader", None)
    if not isinstance(dataset, ImageDataset):
        return
    if isinstance(reader, (ReaderImageFolder, OwnImages)):
        taken = [path for path, _ in reader.samples]
        everything = [path for path, _ in getattr(reader, "everything", reader.samples)]
        present = [
            os.path.join(place, name) for place, _, names in os.walk(reader.root, followlinks=True) for name in names
        ]
        counts = Counter(label for _, label in reader.samples)
        named = names_by_index(reader.class_to_idx) or []
        few, many = min(counts.values()), max(counts.values())
        _logger.info(
            "%s: %s; %d of %d classes%s, %s each",
            what,
            taken_and_passed_over(taken, present, everything),
            len(counts),
            len(named),
            f" ({_listed(named, 10)})",
            f"{few} images" if few == many else f"{few} to {many} images",
        )
        for note in images.notes(taken):
            _logger.info("%s: %s", what, note)
    elif hasattr(reader, "root"):
        try:
            names = dataset.filenames()
        except (AttributeError, NotImplementedError, TypeError, KeyError, AssertionError):
            names = []
        _logger.info("%s: %d images%s", what, len(dataset), f" ({count_endings(names)})" if names else "")


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
            f"data folder {root} has no {split!r} folder; it holds {_listed(found, 10) or 'no folders'}"
            + nearest(split, found)
            + (f"; where these are classes, {HOLD_OUT}" if part_of(split) is not None else "")
        )
    target = folder / match
    if not os.access(target, os.R_OK | os.X_OK):
        raise UserError(f"data folder {target} cannot be read: permission denied")
    if not has_images(target):
        raise UserError(
            f"data folder {target} holds no images; expected {match}/<class>/<image> with one of "
            + ", ".join(endings())
        )
    return target


def has_images(folder: Path) -> bool:
    """Return whether an image or tar file lies anywhere below a folder."""
    wanted = (*endings(), ".tar")
    return any(name.lower().endswith(wanted) for _, _, names in os.walk(folder, followlinks=True) for name in names)


def class_mapping(dataset: torch.utils.data.Dataset) -> dict[str, int] | None:
    """Return class names to indices, or None where the data set does not tell them."""
    reader = getattr(dataset, "reader", dataset)
    mapping = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None)
    return dict(mapping) if isinstance(mapping, dict) and mapping else None


def names_by_index(mapping: Mapping[str, int] | None) -> list[str] | None:
    """Return the class names by index; names that share one are joined, an index without any is its own name."""
    if not mapping:
        return None
    names: list[list[str]] = [[] for _ in range(max(mapping.values()) + 1)]
    for name, index in mapping.items():
        names[index].append(str(name))
    return [" / ".join(group) or str(index) for index, group in enumerate(names)]


def class_names(dataset: torch.utils.data.Dataset) -> list[str] | None:
    """Return the class names by index, or None where the data set does not tell them."""
    return names_by_index(class_mapping(dataset))


def labels(dataset: torch.utils.data.Dataset) -> list[int]:
    """Return the label of every sample without reading an image.

    Raises:
        UserError: The data set does not tell them.
    """
    reader: Any = getattr(dataset, "reader", None)
    if isinstance(reader, (ReaderImageFolder, OwnImages)):
        return [label for _, label in reader.samples]
    if getattr(reader, "targets", None) is not None:
        return [int(label) for label in reader.targets]
    if hasattr(reader, "iter_targets"):
        return [int(label) for label in reader.iter_targets()]
    targets = getattr(dataset, "targets", None)
    if targets is not None:
        return [int(label) for label in targets]
    raise UserError(
        "class weights and balanced sampling need a data set that tells its labels: a folder, tar, or hfds/"
    )


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
        reader: Brings images to the model's channels.
    """

    def __init__(
        self,
        dataset: torch.utils.data.Dataset,
        transform: Any,
        *,
        seed: int = 0,
        bad_images: str = "refuse",
        reader: ImageReader | None = None,
    ):
        self.dataset: Any = dataset  # torch's type has no length
        self.transform = transform
        self.seed = seed
        self.bad_images = bad_images
        self.reader = reader or ImageReader()

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
            image, label = self.reader.blank(), SKIPPED
        return self.transform(image), label

    def _first_readable(self, index: int) -> tuple[Image.Image | Planes, int]:
        for offset in range(len(self)):
            try:
                return self._read((index + offset) % len(self))
            except BadImageError as error:
                if self.bad_images == "refuse":
                    raise
                _logger.warning("%s; skipped", error)
        raise UserError("no image of the data set can be read")

    def _read(self, index: int) -> tuple[Image.Image | Planes, int]:
        if isinstance(self.dataset, ImageDataset):
            try:
                file, label, *_ = self.dataset.reader[index]
            except OSError as error:
                raise BadImageError(f"image {self._path(index)} cannot be read: {error.strerror}") from error
            with file:
                return self.reader.read(file, self._path(index)), -1 if label is None else label
        try:
            image, label = self.dataset[index]
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on a damaged file
            reason = " ".join(str(error).split())
            raise BadImageError(f"image {self._path(index)} cannot be read: {reason}") from error
        return self.reader.convert(image, self._path(index)) if isinstance(image, Image.Image) else image, label

    def _path(self, index: int) -> str:
        if isinstance(self.dataset, ImageDataset):
            name = self.dataset.filename(index, absolute=True)
            return str(name) if name else f"number {index}"
        return f"number {index}"
