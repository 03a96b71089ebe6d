"""Streams of images, WebDataset shards and Hugging Face data sets, that can be entered at any place of an epoch.

A stream is read forward, in windows of samples that are permuted by seed, epoch and place. What a batch holds depends
on these alone, never on which process or loader process reads it; see `sampling.StreamBatches` for who reads what.
"""

import itertools
import json
import logging
import re
import tarfile
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from PIL import Image
from timm.data.readers.class_map import remap_target
from timm.data.readers.targets import get_field

from ...errors import UserError
from .datasets import SKIPPED
from .images import BadImageError, ImageReader
from .randomness import derive_seed, seed_everything
from .sampling import Address

_logger = logging.getLogger(__name__)

WINDOW = 1024  # samples that are held, undecoded, and permuted
ATTEMPTS, PAUSE = 3, 1.0  # of reading a shard, and seconds before the second one
LOCAL = re.compile(r"(?!\w+:)|file:")
_MEMBER = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
# what a stream raises when its place cannot be read now
_FAILURES = (OSError, EOFError, tarfile.TarError, zlib.error)


class ShardError(UserError):
    """A shard that cannot be read, named."""


class Raw(NamedTuple):
    """A sample that is not decoded yet: its name, its number among all, image file and label."""

    name: str
    number: int
    image: bytes | str | Image.Image
    label: int


def samples_of_tar(
    stream: BinaryIO, first: int = 0, *, seekable: bool = False
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the samples of a WebDataset shard: files in a row whose names are equal up to the first dot.

    Args:
        stream: The open tar file.
        first: Samples to pass over.
        seekable: Jump over what is passed over instead of reading it.

    Yields:
        Key, and content by ending in lower case.
    """
    with tarfile.open(fileobj=stream, mode="r:*" if seekable else "r|*") as archive:
        key, number = None, -1
        parts: dict[str, bytes] = {}
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile would remember all of them
            match = _MEMBER.fullmatch(member.name) if member.isfile() else None
            if match is None:
                continue
            if match[1] != key:
                if key is not None and number >= first:
                    yield key, parts
                key, number, parts = match[1], number + 1, {}
            if number >= first:
                content = archive.extractfile(member)
                parts[match[2].lower()] = b"" if content is None else content.read()
        if key is not None and number >= first:
            yield key, parts


def open_shard(url: str) -> BinaryIO:
    """Open a local path, or any URL that webdataset opens."""
    if LOCAL.match(url):
        return open(url.removeprefix("file://").removeprefix("file:"), "rb")
    from webdataset import gopen

    return gopen.gopen(url, "rb")


class Shards:
    """The shards of a split and what their samples are.

    Args:
        urls: Of the shards.
        lengths: Samples of each.
        image_endings: Endings of an image, the first one found counts.
        label: From a sample's files by ending to its label.
    """

    def __init__(
        self,
        urls: Sequence[str],
        lengths: Sequence[int],
        image_endings: Sequence[str],
        label: Callable[[dict[str, bytes]], int],
    ):
        self.urls, self.lengths, self.image_endings, self.label = list(urls), list(lengths), image_endings, label
        self.firsts = list(itertools.accumulate(self.lengths, initial=0))

    relative = False  # a place counts from the beginning of the epoch

    def __len__(self) -> int:
        return self.firsts[-1]

    def read(self, epoch: int, seed: int, first: int, count: int, cursor: dict[str, Any]) -> list[Raw]:
        """Read samples in a row of the epoch's order of the shards.

        Args:
            epoch: Epoch; -1 for the shards in their listed order.
            seed: Seed of the order.
            first: Place of the first sample in that order.
            count: Samples.
            cursor: Where an earlier call stopped, to go on there; belongs to this method.

        Raises:
            ShardError: A shard cannot be read, after some attempts, or is shorter than it should be.
        """
        if cursor.get("epoch") != (epoch, seed):
            order = list(range(len(self.urls)))
            if epoch >= 0:
                generator = torch.Generator().manual_seed(derive_seed(seed, "shards", epoch))
                order = torch.randperm(len(order), generator=generator).tolist()
            starts = list(itertools.accumulate((self.lengths[shard] for shard in order), initial=0))
            cursor.clear()
            cursor.update(epoch=(epoch, seed), order=order, starts=starts)
        found: list[Raw] = []
        while count > len(found):
            place = first + len(found)
            turn = bisect_right(cursor["starts"], place) - 1
            shard, index = cursor["order"][turn], place - cursor["starts"][turn]
            found += self._read(shard, index, min(count - len(found), self.lengths[shard] - index), cursor)
        return found

    def _read(self, shard: int, first: int, count: int, cursor: dict[str, Any]) -> list[Raw]:
        url = self.urls[shard]

        def begin(first: int) -> Iterator[tuple[str, dict[str, bytes]]]:
            stream = open_shard(url)
            cursor["close"] = stream.close
            return self._whole(samples_of_tar(stream, first, seekable=bool(LOCAL.match(url))), shard, first)

        samples = read_on(cursor, shard, first, count, begin, f"shard {url}")
        return [self._raw(f"{url}::{key}", shard, first + i, parts) for i, (key, parts) in enumerate(samples)]

    def _whole(self, samples: Iterator[Any], shard: int, first: int) -> Iterator[Any]:
        """Yield samples; fewer than listed are a failure, which a download that was cut short looks like too."""
        for sample in samples:
            yield sample
            first += 1
        if first < self.lengths[shard]:
            raise EOFError(
                f"it ends after {first} samples, expected {self.lengths[shard]} (tools/shards.py --index counts anew)"
            )

    def _raw(self, name: str, shard: int, index: int, parts: dict[str, bytes]) -> Raw:
        ending = next((ending for ending in self.image_endings if ending in parts), None)
        if ending is None:
            raise ShardError(
                f"sample {name} has no image under {', '.join(self.image_endings)}, found {', '.join(parts)}; "
                "name it with --input-key"
            )
        try:
            label = self.label(parts)
        except (KeyError, ValueError, TypeError) as error:
            raise ShardError(f"sample {name} has no label that can be read: {error}") from error
        return Raw(name, self.firsts[shard] + index, parts[ending], label)


class HuggingFaceStream:
    """A streamed data set of Hugging Face. It does not tell how many samples a shard has.

    A lane reads every `lanes`-th shard of the epoch's order, or, where there are fewer shards than lanes, every n-th
    sample of one. When its shards end before the epoch does it begins with them again.

    Args:
        dataset: datasets.IterableDataset.
        num_samples: Samples of an epoch.
        input_key: Column of the image.
        label: From a row to its label.
        name: What it is called in errors.
    """

    relative = True  # a place counts from the beginning of its lane

    def __init__(self, dataset: Any, num_samples: int, input_key: str, label: Callable[[dict], int], name: str):
        from datasets import Image as ImageFeature

        feature = (dataset.features or {}).get(input_key)
        if isinstance(feature, ImageFeature):
            dataset = dataset.cast_column(input_key, ImageFeature(decode=False))  # decoded where they are used
        self.dataset, self.num_samples, self.name = dataset, num_samples, name
        self.input_key, self.label = input_key, label

    def __len__(self) -> int:
        return self.num_samples

    def read(self, epoch: int, seed: int, first: int, count: int, cursor: dict[str, Any]) -> list[Raw]:
        """Read samples in a row of a lane; arguments and errors as for `Shards.read`, the lane lies in the cursor."""
        lane, lanes = cursor["lane"]
        rows = read_on(
            cursor, (epoch, lane, lanes), first, count, partial(self._rows, epoch, seed, lane, lanes), self.name
        )
        return [
            Raw(f"{self.name}::{lane}:{first + i}", (first + i) * lanes + lane, self._image(row), int(self.label(row)))
            for i, row in enumerate(rows)
        ]

    def _image(self, row: dict) -> bytes | str | Image.Image:
        value = row[self.input_key]
        return (value["bytes"] or value["path"]) if isinstance(value, dict) else value

    def _rows(self, epoch: int, seed: int, lane: int, lanes: int, first: int) -> Iterator[dict]:
        shards = self.dataset.num_shards
        order = list(range(shards))
        if epoch >= 0:
            order = torch.randperm(
                shards, generator=torch.Generator().manual_seed(derive_seed(seed, "shards", epoch))
            ).tolist()
        own = order[lane::lanes] or [order[lane % shards]]
        sharing = 1 if shards >= lanes else len(range(lane % shards, lanes, shards))

        def rows() -> Iterator[dict]:
            for shard in own:
                part = self.dataset.shard(num_shards=shards, index=shard)
                yield from itertools.islice(part, lane // shards if sharing > 1 else 0, None, sharing)

        left, turn = first, 0
        while True:
            seen = 0
            for row in rows():
                seen += 1
                if left:
                    left -= 1
                    continue
                yield row
            if epoch < 0:
                return
            if not seen:
                raise ShardError(f"{self.name} has no sample for lane {lane} of {lanes}; lower --workers")
            turn += 1
            _logger.info("%s: the shards of lane %d have ended and begin again (%d)", self.name, lane, turn)


def read_on(
    cursor: dict[str, Any], where: Any, first: int, count: int, begin: Callable[[int], Iterator[Any]], name: str
) -> list[Any]:
    """Read entries in a row, going on where the last call stopped, with some attempts at each that fails.

    Args:
        cursor: Keeps what is open.
        where: What is read.
        first: Number of the first entry in it.
        count: Entries; fewer come back at its end.
        begin: Opens it at an entry.
        name: For errors.

    Raises:
        ShardError: One of them failed in every attempt.
    """
    found: list[Any] = []
    attempts = 0  # at the entry at hand
    while len(found) < count:
        place = first + len(found)
        try:
            if cursor.get("place") != (where, place):
                _close(cursor)
                cursor["entries"] = begin(place)
            found.append(next(cursor["entries"]))
            cursor["place"] = (where, place + 1)
            attempts = 0
        except StopIteration:
            _close(cursor)
            break
        except _FAILURES as error:
            _close(cursor)
            attempts += 1
            reason = " ".join(str(error).split()) or type(error).__name__
            if attempts == ATTEMPTS:
                raise ShardError(
                    f"{name} cannot be read at sample {place} after {ATTEMPTS} attempts: {reason}; "
                    "continue with --resume auto when it can, or leave it out of the split"
                ) from error
            _logger.warning("%s failed at sample %d and is tried again: %s", name, place, reason)
            time.sleep(PAUSE * 2 ** (attempts - 1))
    return found


def _close(cursor: dict[str, Any]) -> None:
    cursor.pop("place", None)
    entries, close = cursor.pop("entries", None), cursor.pop("close", None)
    if entries is not None:
        entries.close()
    if close is not None:
        with suppress(OSError):  # of a download that is left before its end
            close()


class StreamedImages(torch.utils.data.Dataset):
    """Reads a stream by address.

    Args:
        source: `Shards` or `HuggingFaceStream`.
        transform: Image transform.
        seed: Seed of order and augmentation.
        bad_images: As for `datasets.ReadableImages`; in training the next readable one of the window comes instead.
        reader: Brings images to the model's channels.
    """

    def __init__(
        self,
        source: Shards | HuggingFaceStream,
        transform: Any,
        *,
        seed: int = 0,
        bad_images: str = "refuse",
        reader: ImageReader | None = None,
    ):
        self.source, self.transform, self.seed, self.bad_images = source, transform, seed, bad_images
        self.reader = reader or ImageReader()
        self.windows: dict[tuple[int, int], tuple[tuple[int, int], list[Raw]]] = {}
        self.cursors: dict[tuple[int, int], dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"windows": {}, "cursors": {}}  # what is open stays here

    def __getitem__(self, address: Address) -> tuple[Any, int]:
        window = self._window(address)
        if address.epoch < 0:
            raw = window[address.place]
            try:
                image, label = self._decode(raw), raw.label
            except BadImageError as error:
                if self.bad_images == "refuse":
                    raise
                _logger.warning("%s; skipped", error)
                image, label = self.reader.blank(), SKIPPED
            return self.transform(image), label
        for offset in range(len(window)):
            raw = window[(address.place + offset) % len(window)]
            try:
                image = self._decode(raw)
            except BadImageError as error:
                if self.bad_images == "refuse":
                    raise
                _logger.warning("%s; skipped", error)
                continue
            seed_everything(self.seed, "sample", address.epoch, raw.number, 0)
            return self.transform(image), raw.label
        raise UserError(f"no image of {len(window)} in a row can be read, the first is {window[0].name}")

    def _window(self, address: Address) -> list[Raw]:
        """Return the samples of an address's window in the order that they are used in."""
        key = (address.epoch, address.lane)
        if any(epoch != address.epoch for epoch, _ in self.windows):
            self.windows.clear()
            for cursor in self.cursors.values():
                _close(cursor)
            self.cursors.clear()
        place, window = self.windows.get(key, (None, []))
        if place != (address.first, address.samples):
            self.windows.pop(key, None)  # before the next one is read
            cursor = self.cursors.setdefault(key, {})
            if self.source.relative:
                cursor["lane"] = (address.lane, address.lanes)
            window = self.source.read(address.epoch, self.seed, address.first, address.samples, cursor)
            if address.epoch >= 0:
                seed = derive_seed(self.seed, "window", address.epoch, address.lane, address.first)
                order = torch.randperm(len(window), generator=torch.Generator().manual_seed(seed))
                window = [window[i] for i in order.tolist()]
            self.windows[key] = ((address.first, address.samples), window)
        return window

    def _decode(self, raw: Raw) -> Any:
        if isinstance(raw.image, Image.Image):
            return self.reader.convert(raw.image, raw.name)
        return self.reader.read(BytesIO(raw.image) if isinstance(raw.image, bytes) else Path(raw.image), raw.name)


def enterable(dataset: Any) -> Shards | HuggingFaceStream | None:
    """Return the source of a streamed data set of timm that can be entered anywhere.

    Returns:
        None where its reader has to be used: the lengths of shards are not known, samples are repeated, or have several
        labels. A line of the log says why.
    """
    reader: Any = getattr(dataset, "reader", None)
    kind = type(reader).__name__
    if kind not in ("ReaderWds", "ReaderHfids"):
        return None
    why = None
    if getattr(reader, "repeats", 0) > 1:
        why = "--epoch-repeats is given"
    elif reader.target_keys or reader.dense_target:
        why = "its samples have several labels"
    elif kind == "ReaderWds" and not _lengths(reader):
        why = "the lengths of its shards are not known; count them with tools/shards.py --index"
    if why is not None:
        _logger.warning("an epoch of this stream that is interrupted begins again: %s", why)
        return None
    return _shards(reader) if kind == "ReaderWds" else _hugging_face(reader)


def _lengths(reader: Any) -> list[int]:
    info = reader.split_info
    known = dict(zip(info.filenames, info.shard_lengths, strict=False))
    return [known[name] for name in info.filenames] if set(info.filenames) <= set(known) else []


def _shards(reader: Any) -> Shards:
    names = reader.split_info.filenames
    urls = [str(name) if not LOCAL.match(name) or not reader.root else f"{reader.root}/{name}" for name in names]
    key = reader.target_key or reader.split_info.alt_label
    label = partial(_label_of_files, key, reader.class_to_idx if reader.remap_class else None, source_names(reader))
    return Shards(urls, _lengths(reader), [ending.lower() for ending in reader.input_key.split(";")], label)


def _label_of_files(key: str, mapping: dict | None, names: dict[int, str] | None, parts: dict[str, bytes]) -> int:
    label = int(get_field(json.loads(parts["json"]), key) if key else parts["cls"])
    if label < 0:
        raise ValueError(f"{label} is no class; leave such samples out when shards are written")
    return int(label if mapping is None else remap_target(label, mapping, names))


def _hugging_face(reader: Any) -> HuggingFaceStream:
    if reader.download:
        dataset = reader.builder.as_dataset(split=reader.split)
        dataset = dataset.to_iterable_dataset(num_shards=max(1, min(256, len(dataset))))
    else:
        dataset = reader.builder.as_streaming_dataset(split=reader.split)
    mapping = reader.class_to_idx if reader.remap_class else None
    label = partial(_label_of_row, reader.target_key, mapping, source_names(reader))
    return HuggingFaceStream(dataset, reader.num_samples, reader.input_key, label, f"data set {reader.name}")


def _label_of_row(key: str, mapping: dict | None, names: dict[int, str] | None, row: dict) -> int:
    label = get_field(row, key)
    return int(label if mapping is None else remap_target(label, mapping, names))


def source_names(reader: Any) -> dict[int, str] | None:
    """Return the class names by the data's own index, or None where the data does not tell them."""
    return getattr(reader, "_source_names", None) or None
