"""Image files as the channels of a model: which endings are read, how values are scaled, and what is refused."""

import random
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageMode, TiffImagePlugin
from torchvision.io import ImageReadMode, decode_image

from ...errors import UserError
from .limits import MAX_PIXELS
from .randomness import seed_everything

_NO_DECODER = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows what these are and cannot read them
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_NUMPY = b"\x93NUMPY"

Planes = list[Image.Image]


class BadImageError(UserError):
    """An image file that cannot be used, named by its path."""


def endings() -> tuple[str, ...]:
    """Return the endings of files that are taken for images: what Pillow reads, and `.npy`."""
    known = Image.registered_extensions()
    return (*sorted(e for e, form in known.items() if form in Image.OPEN and form not in _NO_DECODER), ".npy")


def count_endings(paths: Iterable[str | PurePath]) -> str:
    """Return how many files have which ending, most first: `.png 20, .tif 4`."""
    counts = Counter(PurePath(path).suffix.lower() or "without ending" for path in paths)
    return ", ".join(f"{ending} {count}" for ending, count in counts.most_common())


def taken_and_passed_over(
    taken: Sequence[str | Path], present: Iterable[str | Path], everything: Sequence[str | Path] | None = None
) -> str:
    """Return a sentence that counts the files that were taken as images and those that were not, by ending.

    Args:
        taken: Files that were taken.
        present: All files of the place.
        everything: Those taken by this part and the others that the place is divided into.
    """
    chosen = {str(path) for path in (everything or taken)}
    left = [path for path in present if str(path) not in chosen]
    passed = f"{len(left)} ({count_endings(left)}), by their endings no images" if left else "none"
    of = f" of {len(everything)}" if everything is not None and len(everything) > len(taken) else ""
    return f"{len(taken)}{of} images ({count_endings(taken)}), passed over {passed}"


def image_mode(channels: int) -> str:
    """Return the Pillow mode that images are read in for a number of channels; "" where only arrays have so many."""
    return _MODES.get(channels, "")


@dataclass(frozen=True)
class ImageReader:
    """Reads one image file as 8-bit channels.

    Images of one and three channels stay one Pillow image. Those of another number are cut into planes, since Pillow's
    geometry mixes alpha into colour: grey with alpha (2) and RGBA (4) come from every format with the mode; any number
    comes from a `.npy` array (height, width, channels), or a TIFF file with a page per channel.

    16-bit images are scaled by 65535 and arrays of floats by 1, or by `pixel_range`; integers of 32 bits, whose range
    nothing tells, need it.

    Attributes:
        channels: Channels of the model.
        mode: Pillow mode that images are converted to; None for that of the channels.
        pixel_range: What becomes black and white where values are not 8-bit; None for what the type tells.
        max_pixels: Images with more are refused; 0 for no limit.
        decoder: "pillow"; or "torchvision" for 8-bit JPEG, PNG and WebP files in colour that are read as RGB, whose
            values may differ by a few steps, while Pillow decodes all others.

    Raises:
        UserError: The mode has another number of channels.
    """

    channels: int = 3
    mode: str | None = None
    pixel_range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS
    decoder: str = "pillow"

    def __post_init__(self) -> None:
        if self.pixel_range is not None and not self.pixel_range[0] < self.pixel_range[1]:
            raise UserError(f"--pixel-range wants a lower and a higher value, got {self.pixel_range}")
        if not self.mode:
            return
        try:
            bands = len(ImageMode.getmode(self.mode).bands)
        except KeyError as error:
            raise UserError(
                f"--input-img-mode {self.mode!r} is no mode of Pillow such as L, RGB, RGBA or HSV"
            ) from error
        if ImageMode.getmode(self.mode).typestr != "|u1":
            raise UserError(f"--input-img-mode {self.mode!r} is not 8-bit; see --pixel-range for other images")
        if bands != self.channels:
            raise UserError(
                f"--input-img-mode {self.mode} has {bands} channel(s), but the model takes {self.channels}; "
                f"give --in-chans {bands}"
            )

    def read(self, file: BinaryIO | str | Path, name: str) -> Image.Image | Planes:
        """Read a file completely.

        Args:
            file: Path or open file.
            name: What the file is called in errors.

        Raises:
            BadImageError: It cannot be decoded, is too large, or has other channels or values than can be used.
        """
        try:
            with _no_global_limit():
                if isinstance(file, (str, Path)):
                    with open(file, "rb") as opened:
                        return self._read(opened)
                return self._read(file)
        except _Refused as error:
            raise BadImageError(f"image {name} cannot be used: {error}") from None
        except Exception as error:  # decoders of damaged files raise nearly every type
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadImageError(f"image {name} cannot be read: {reason}") from error

    def convert(self, image: Image.Image, name: str) -> Image.Image | Planes:
        """Bring an image that something else has opened to the model's channels; errors as for `read`."""
        try:
            with _no_global_limit():
                return self._convert(image)
        except _Refused as error:
            raise BadImageError(f"image {name} cannot be used: {error}") from None
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadImageError(f"image {name} cannot be read: {reason}") from error

    def notes(self, paths: Iterable[str | Path]) -> list[str]:
        """Return a sentence about each ending whose first file is not 8-bit: how its values are scaled."""
        first: dict[str, str | Path] = {}
        for path in paths:
            first.setdefault(PurePath(path).suffix.lower(), path)
        found = []
        for ending, path in first.items():
            try:
                with _no_global_limit(), Image.open(path) as image:
                    mode, form = image.mode, image.format
            except Exception:  # arrays, and damaged files, which are named when they are read
                continue
            if not mode.startswith(("I", "F")):
                continue
            sixteen = mode.startswith("I;16") or form in ("PNG", "PPM")
            bits = "16-bit" if sixteen else "32-bit" if mode.startswith("I") else "floats"
            low, high = self.pixel_range or ((0, 65535) if sixteen else (0, 1) if mode == "F" else (None, None))
            scaled = "whose range is not known" if low is None else f"and {low:g} to {high:g} are scaled to 8 bits"
            found.append(f"{path} and other {ending} images are {bits} ({mode}), {scaled}; see --pixel-range")
        return found

    def blank(self) -> Image.Image | Planes:
        """Return a black image."""
        if self.channels in (1, 3):
            return Image.new(self.mode or image_mode(self.channels), (8, 8))
        return [Image.new("L", (8, 8))] * self.channels

    def _read(self, file: BinaryIO) -> Image.Image | Planes:
        start = file.read(len(_NUMPY))
        file.seek(0)
        if start == _NUMPY:
            return self._from_array(self._load_array(file))
        with Image.open(file) as image:
            if self.decoder == "torchvision" and self.channels == 3 and self.mode in (None, "RGB"):
                if image.mode == "RGB" and image.format in ("JPEG", "PNG", "WEBP"):
                    self._check_size(*image.size)
                    file.seek(0)
                    content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
                    decoded = decode_image(content, ImageReadMode.RGB)
                    if decoded.dtype == torch.uint8:
                        return Image.fromarray(decoded.permute(1, 2, 0).numpy())
            return self._convert(image)

    def _load_array(self, file: BinaryIO) -> np.ndarray:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self._check_size(*(*header(file)[0], 1, 1)[1::-1])
        file.seek(0)
        return np.load(file, allow_pickle=False)

    def _from_array(self, array: np.ndarray) -> Image.Image | Planes:
        if array.ndim == 2:
            array = array[..., None]
        if array.ndim != 3 or array.shape[-1] != self.channels or not array.size:
            raise _Refused(
                f"an array of shape {array.shape}, expected (height, width, {self.channels}) for a model of "
                f"{self.channels} channel(s)"
            )
        planes = [Image.fromarray(self._to_bytes(array[..., i])) for i in range(self.channels)]
        if self.channels == 3:
            return Image.merge("RGB", planes)
        return planes[0] if self.channels == 1 else planes

    def _convert(self, image: Image.Image) -> Image.Image | Planes:
        self._check_size(*image.size)
        pages = getattr(image, "n_frames", 1) if isinstance(image, TiffImagePlugin.TiffImageFile) else 1
        if self.channels not in (1, 3) and pages == self.channels and len(image.getbands()) == 1:
            planes = []
            for page in range(pages):
                image.seek(page)
                self._check_size(*image.size)
                planes.append(self._eight_bits(image).convert("L"))
            if len({plane.size for plane in planes}) > 1:
                raise _Refused("its pages are of different sizes")
            return planes
        mode = self.mode or image_mode(self.channels)
        if not mode:
            raise _Refused(
                f"it has {len(image.getbands())} channel(s), expected {self.channels}; so many come from .npy arrays "
                "(height, width, channels) or TIFF files with a page per channel"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a palette's transparency is left out, as it should be
            image = self._eight_bits(image).convert(mode)
        image.load()
        return image if self.channels in (1, 3) else list(image.split())

    def _eight_bits(self, image: Image.Image) -> Image.Image:
        """The image itself if it has 8 bits or one, else its scaled values as grey."""
        if not image.mode.startswith(("I", "F")):
            return image
        array = np.asarray(image)
        if image.mode == "I" and image.format in ("PNG", "PPM"):
            array = array.astype(np.uint16)  # neither has more bits
        return Image.fromarray(self._to_bytes(array))

    def _to_bytes(self, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind == "u" and array.dtype.itemsize == 1:
            return np.ascontiguousarray(array)
        if array.dtype == bool:
            return array.astype(np.uint8) * 255
        if array.dtype.kind not in "uif":
            raise _Refused(f"its values are of type {array.dtype}")
        bounds = self.pixel_range
        if bounds is None:
            if array.dtype.kind == "f":
                bounds = (0.0, 1.0)
                if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
                    raise _Refused(
                        f"its values are floats from {array.min():g} to {array.max():g}, not 0 to 1; say what is black "
                        "and white with --pixel-range LOW HIGH"
                    )
            elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
                bounds = (0.0, 65535.0)
            else:
                raise _Refused(
                    f"its values are {array.dtype} from {array.min()} to {array.max()}, whose range is not known; say "
                    "what is black and white with --pixel-range LOW HIGH"
                )
        low, high = bounds
        values = np.nan_to_num(array.astype(np.float64), nan=low, posinf=high, neginf=low)
        return np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)

    def _check_size(self, width: int, height: int) -> None:
        if self.max_pixels and width * height > self.max_pixels:
            raise _Refused(
                f"{width} x {height} pixels are more than --max-pixels {self.max_pixels}, the limit against files that "
                "fill the memory; raise it, or set it to 0, if the image is meant"
            )


class ChannelTransform:
    """Applies timm's transform to an image, or with the same draw to each of its planes.

    Colour augmentations then act on every plane by itself.

    Args:
        transform: timm's transform to (channels, height, width) arrays.
    """

    def __init__(self, transform: Any):
        self.transform = transform

    def __call__(self, image: Image.Image | Planes) -> Any:
        if isinstance(image, Image.Image):
            return self.transform(image)
        draw = random.getrandbits(62)
        results = []
        for plane in image:
            seed_everything("planes", draw)
            results.append(self.transform(plane))
        return torch.cat(results) if isinstance(results[0], torch.Tensor) else np.concatenate(results)


class _Refused(Exception):
    """Why an image that can be decoded is not used."""


@contextmanager
def _no_global_limit():
    """Leave the limit of pixels to the reader; Pillow's own is one for the whole process."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
