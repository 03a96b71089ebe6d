"""Images that nobody divided: a part of each class is held out, always the same; and classes that a table names."""

import csv
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from timm.data import ImageDataset
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key

from ...errors import UserError

_logger = logging.getLogger(__name__)

SPLIT_NAMES = ({"train", "training"}, {"val", "valid", "validation", "eval", "evaluation"})
HOLD_OUT = "hold a part out with --val-fraction 0.2"
IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path", "image_path", "image_id", "id")
LABEL_COLUMNS = ("label", "class", "category", "target", "class_name")

Samples = list[tuple[str, int]]


class OwnImages(Reader):
    """A part of images whose classes are known, as timm's readers of folders give them.

    Args:
        root: Folder that names are relative to.
        samples: Path and class of each image of this part.
        everything: Those of all parts.
        class_to_idx: Names of the classes of all parts to indices.
    """

    def __init__(self, root: Path, samples: Samples, everything: Samples, class_to_idx: Mapping[str, int]):
        super().__init__()
        self.root = str(root)
        self.samples = samples
        self.everything = everything
        self.class_to_idx = dict(class_to_idx)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        path, label = self.samples[index]
        return open(path, "rb"), label

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        if basename:
            return os.path.basename(path)
        return path if absolute else os.path.relpath(path, self.root)


def part_of(split: str) -> int | None:
    """Return 0 for the training part, 1 for what is held out, None for another split."""
    return next((number for number, names in enumerate(SPLIT_NAMES) if split.lower() in names), None)


def undivided(root: str | None, split: str) -> Path | None:
    """Return the folder of class folders that has to be divided for a split, or None where a folder has that split."""
    folder = Path(root or "")
    if not root or not folder.is_dir() or part_of(split) is None:
        return None
    found: list[list[Path]] = [[], []]
    for entry in sorted(folder.iterdir()):
        number = part_of(entry.stem if entry.suffix == ".tar" else entry.name)
        if number is not None and (entry.is_dir() or entry.suffix == ".tar"):
            found[number].append(entry)
    training, held = found
    if held:
        return None
    return training[0] if training and training[0].is_dir() else None if training else folder


def held_out(names: Sequence[str], labels: Sequence[int], fraction: float) -> set[int]:
    """Return the numbers of the images that are held out: of each class the fraction, and at least one of two.

    Which ones depends on their names alone, by a hash: not on order, machine or seed, and hardly on what is added.

    Args:
        names: Names of the images.
        labels: Their classes.
        fraction: Between 0 and 1.

    Raises:
        UserError: It is not.
    """
    if not 0 < fraction < 1:
        raise UserError(f"--val-fraction is a part between 0 and 1, such as 0.2, got {fraction:g}")
    members: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for number, (name, label) in enumerate(zip(names, labels, strict=True)):
        members[label].append((hashlib.sha256(name.encode()).hexdigest(), number))
    chosen: set[int] = set()
    for group in members.values():
        count = min(max(round(fraction * len(group)), 1), len(group) - 1)
        chosen.update(number for _, number in sorted(group)[:count])
    return chosen


def divide(dataset: ImageDataset, folder: Path, split: str, fraction: float) -> ImageDataset:
    """Return the part of an image folder's data set that a split takes.

    Raises:
        UserError: Images lie beside the class folders, or there is but one class.
    """
    samples: Samples = dataset.reader.samples
    if "" in dataset.reader.class_to_idx:
        loose = [Path(path).name for path, _ in samples if Path(path).parent == folder]
        raise UserError(
            f"{folder} holds {len(loose)} images in no class folder ({', '.join(loose[:3])}, ...); sort them into "
            "folders, one per class, or name their classes in a table: --labels FILE.csv"
        )
    return _part(dataset, folder, samples, dataset.reader.class_to_idx, split, fraction)


def open_table(
    root: str | None, split: str, table: str, fraction: float | None, class_map: Mapping[str, int] | str | None
) -> ImageDataset:
    """Open images whose classes a CSV table names.

    Args:
        root: Folder of the images.
        split: "train" or "validation", or a value of the table's column `split`.
        table: CSV file, from here or from `root`: a column of files, relative to `root`, a column of classes, and a
            column `split` where the table divides them.
        fraction: What to hold out where it does not.
        class_map: Names of the classes to indices, or None to number them in their order.

    Raises:
        UserError: The table lacks something, or names files that do not exist.
    """
    if not root or not Path(root).is_dir():
        raise UserError(f"--labels needs the folder of the images, but --data-dir {root or ''} is none")
    path = next((place for place in (Path(table), Path(root) / table) if place.is_file()), None)
    if path is None:
        raise UserError(f"--labels {table} does not exist")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--labels {path} cannot be read: {error}") from error
    columns = list(rows[0]) if rows else []
    image = next((name for name in columns if name and name.strip().lower() in IMAGE_COLUMNS), None)
    label = next((name for name in columns if name and name.strip().lower() in LABEL_COLUMNS), None)
    if image is None or label is None:
        raise UserError(
            f"--labels {path} has the columns {', '.join(map(str, columns)) or 'none'}; expected 'image' and 'label', "
            "and 'split' where it divides the images"
        )
    files = [Path(root) / (row[image] or "") for row in rows]
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"--labels {path} names {len(missing)} of {len(files)} files that do not exist, such as {missing[0]}"
        )
    names = [(row[label] or "").strip() for row in rows]
    if "" in names:
        raise UserError(f"--labels {path} has no label in line {names.index('') + 2}")
    known = dict(class_map) if isinstance(class_map, Mapping) else _numbered(names)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(f"--labels {path} has classes that are not known: {', '.join(unknown[:10])}")
    samples = [(str(file), known[name]) for file, name in zip(files, names, strict=True)]
    dataset = ImageDataset(root, reader=OwnImages(Path(root), samples, samples, known), input_img_mode="")
    column = next((name for name in columns if name and name.strip().lower() == "split"), None)
    if column is None:
        if fraction is None:
            raise UserError(f"--labels {path} has no column 'split'; {HOLD_OUT}")
        return _part(dataset, Path(root), samples, known, split, fraction)
    group = SPLIT_NAMES[part] if (part := part_of(split)) is not None else {split.lower()}
    chosen = [s for s, row in zip(samples, rows, strict=True) if (row[column] or "").strip().lower() in group]
    if not chosen:
        found = sorted({(row[column] or "").strip() for row in rows})
        raise UserError(f"--labels {path} has no image of the split {split!r}; it has {', '.join(found)}")
    dataset.reader = OwnImages(Path(root), chosen, samples, known)
    return dataset


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: index for index, name in enumerate(sorted(set(names), key=natural_key))}


def _part(
    dataset: ImageDataset,
    folder: Path,
    samples: Samples,
    class_to_idx: Mapping[str, int],
    split: str,
    fraction: float,
) -> ImageDataset:
    if len({label for _, label in samples}) < 2:
        raise UserError(
            f"{folder} has one class only, {', '.join(class_to_idx)}; a classifier needs at least two class folders"
        )
    names = [Path(path).relative_to(folder).as_posix() for path, _ in samples]
    held = held_out(names, [label for _, label in samples], fraction)
    wanted = bool(part_of(split))
    chosen = [sample for number, sample in enumerate(samples) if (number in held) == wanted]
    dataset.reader = OwnImages(folder, chosen, samples, class_to_idx)
    return dataset
