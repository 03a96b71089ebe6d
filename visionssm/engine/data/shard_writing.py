"""WebDataset shards: tar files of images beside their labels, and the list of them that timm's `wds/` reads."""

import hashlib
import json
import random
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from timm.data.readers.reader_image_folder import find_images_and_targets

from ...errors import UserError
from ...files import replacing, write_text
from .datasets import find_split
from .images import ImageReader, endings
from .streams import open_shard, samples_of_tar

INFO = "_info.json"


def images_of(root: str, splits: Sequence[str]) -> tuple[dict[str, list[tuple[str, int]]], dict[str, int]]:
    """Return files and labels of the splits of an image folder, and the class names' indices, the same for all splits.

    Raises:
        UserError: A folder is missing or holds no images.
    """
    folders = {split: str(find_split(root, split)) for split in splits}
    names: set[str] = set()
    for folder in folders.values():
        names |= set(find_images_and_targets(folder, types=endings())[1])
    classes = {name: index for index, name in enumerate(sorted(names))}
    found = {
        split: find_images_and_targets(folder, types=endings(), class_to_idx=classes)[0]
        for split, folder in folders.items()
    }
    return found, classes


def write_split(
    images: Sequence[tuple[str, int]],
    folder: Path,
    split: str,
    *,
    megabytes: float,
    seed: int,
    on_shard: Callable[[str, int, int], None],
) -> list[tuple[str, int]]:
    """Write a split's images, in a random order, as shards `<split>-000000.tar` of about equal size.

    A sample is `<number>.<ending>` beside `<number>.cls`, its label in digits. A shard appears when it is complete.

    Args:
        images: Files and labels.
        folder: Where to.
        split: Name of the split.
        megabytes: A shard is closed when it holds so many (of 10^6 bytes).
        seed: Seed of the order.
        on_shard: Called after each with its name, samples and bytes.

    Returns:
        Names of the shards and how many samples each holds.

    Raises:
        UserError: An image cannot be read from the disk.
    """
    order = list(range(len(images)))
    random.Random(seed).shuffle(order)  # whoever reads shards forward sees all classes
    written: list[tuple[str, int]] = []
    numbers = iter(order)
    left: int | None = next(numbers, None)
    while left is not None:
        name = f"{split}-{len(written):06d}.tar"
        count = size = 0
        with replacing(folder / name) as temporary, tarfile.open(temporary, "w") as archive:
            while left is not None and (not count or size < megabytes * 1e6):
                path, label = images[left]
                try:
                    content = Path(path).read_bytes()
                except OSError as error:
                    raise UserError(f"image {path} cannot be read: {error.strerror}") from error
                key = f"{left:09d}"
                for ending, value in ((Path(path).suffix[1:].lower(), content), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{key}.{ending}")
                    entry.size = len(value)
                    archive.addfile(entry, BytesIO(value))
                    size += 512 + -(-len(value) // 512) * 512
                count += 1
                left = next(numbers, None)
        written.append((name, count))
        on_shard(name, count, size)
    return written


def write_info(
    folder: Path, splits: Mapping[str, Sequence[tuple[str, int]]], classes: Mapping[str, int] | None
) -> None:
    """Write the list of shards, keeping the splits that it has already."""
    path = folder / INFO
    info: dict[str, Any] = read_info(folder) if path.is_file() else {}
    known = info.setdefault("splits", {})
    for split, shards in splits.items():
        known[split] = {
            "name": split,
            "filenames": [name for name, _ in shards],
            "shard_lengths": [count for _, count in shards],
            "num_samples": sum(count for _, count in shards),
        }
    if classes is not None:
        info["class_to_idx"] = dict(classes)
    write_text(path, json.dumps(info, indent=1) + "\n")


def read_info(folder: Path) -> dict[str, Any]:
    """Read the list of shards.

    Raises:
        UserError: There is none, or it is something else.
    """
    try:
        info = json.loads((folder / INFO).read_text())
        for split in info["splits"].values():
            if len(split["filenames"]) != len(split["shard_lengths"]):
                raise ValueError("filenames and shard_lengths differ in length")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / INFO} is no list of shards ({error}); make one with tools/shards.py --index FOLDER"
        ) from error
    return info


def count_samples(url: str) -> int:
    """Return how many samples a shard holds.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with open_shard(url) as stream:
            return sum(1 for _ in samples_of_tar(stream))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"shard {url} cannot be read: {' '.join(str(error).split())}") from error


def find_shards(folder: Path) -> dict[str, list[str]]:
    """Return the names of the tar files of a folder by split: what stands before their number.

    Raises:
        UserError: There are none.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.tar")):
        found.setdefault(path.stem.rstrip("0123456789").rstrip("-_") or path.stem, []).append(path.name)
    if not found:
        raise UserError(f"{folder} holds no .tar files")
    return found


def verify(
    folder: Path, split: str, images: Sequence[tuple[str, int]] | None, reader: ImageReader
) -> Iterator[tuple[str, int, str | None]]:
    """Read every shard of a split again: its length, every image decoded, every label a class.

    Args:
        folder: Of the shards.
        split: Name of the split.
        images: The files and labels they were made from, to compare byte by byte; None where they are not there.
        reader: Decodes.

    Yields:
        Shard, samples, and what is wrong with it, or None.
    """
    info = read_info(folder)
    if split not in info["splits"]:
        raise UserError(f"{folder / INFO} has no split {split!r}, it has {', '.join(info['splits'])}")
    classes = len(info.get("class_to_idx") or ()) or None
    left = set(range(len(images or ())))
    shards = list(zip(info["splits"][split]["filenames"], info["splits"][split]["shard_lengths"], strict=True))
    for number, (name, length) in enumerate(shards):
        problem, count = None, 0
        try:
            with open_shard(str(folder / name)) as stream:
                for key, parts in samples_of_tar(stream):
                    count += 1
                    problem = problem or _problem(name, key, parts, classes, images, reader)
                    if images is not None and key.isdigit():
                        left.discard(int(key))
        except (OSError, EOFError, tarfile.TarError) as error:
            problem = f"cannot be read: {' '.join(str(error).split())}"
        if problem is None and count != length:
            problem = f"holds {count} samples, {INFO} says {length}"
        if problem is None and left and number + 1 == len(shards):
            problem = f"{len(left)} image(s) are in no shard, {images[min(left)][0]} among them" if images else None
        yield name, count, problem


def _problem(
    shard: str,
    key: str,
    parts: dict[str, bytes],
    classes: int | None,
    images: Sequence[tuple[str, int]] | None,
    reader: ImageReader,
) -> str | None:
    content = {ending: value for ending, value in parts.items() if ending != "cls"}
    if "cls" not in parts or not parts["cls"].isdigit() or (classes is not None and int(parts["cls"]) >= classes):
        return f"sample {key} has no label from 0 to {(classes or 1) - 1}"
    if len(content) != 1:
        return f"sample {key} has {len(content)} files beside its label, expected one image"
    (value,) = content.values()
    try:
        reader.read(BytesIO(value), f"{shard}::{key}")
    except UserError as error:
        return str(error)
    if images is not None:
        if not key.isdigit() or int(key) >= len(images):
            return f"sample {key} is none of the images"
        path, label = images[int(key)]
        if (
            label != int(parts["cls"])
            or hashlib.sha256(value).digest() != hashlib.sha256(Path(path).read_bytes()).digest()
        ):
            return f"sample {key} differs from {path}"
    return None
