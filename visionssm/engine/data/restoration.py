"""Images for restoration: sharp ones, with their degraded forms from a folder or generated."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ...errors import UserError, nearest
from .images import BadImageError, ImageReader
from .loaders import TrainLoader
from .processes import World
from .randomness import derive_seed
from .sampling import EpochBatches, EvaluationIndices, SampleKey
from .workers import ExplainedLoader, ignore_signals

_CACHED = 32  # images that one process keeps decoded

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Degradation:
    """How a sharp image is made worse.

    Attributes:
        kind: "bicubic": smaller by the model's scale, with the antialiasing of MATLAB's imresize; "noise": white
            Gaussian noise; "jpeg": compression.
        amount: Standard deviation of the noise in 8-bit levels; quality of the compression, 1 to 100.
    """

    kind: str
    amount: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Degradation":
        """Read "bicubic", "noise=25" or "jpeg=10".

        Raises:
            UserError: it is none of these.
        """
        kind, _, amount = text.partition("=")
        known = ("bicubic", "noise", "jpeg")
        if kind not in known:
            raise UserError(
                f"there is no degradation {kind!r}{nearest(kind, known)}; take bicubic, noise=25 or jpeg=10"
            )
        if kind == "bicubic":
            if amount:
                raise UserError("bicubic takes no amount: the model's scale says how much smaller images get")
            return cls(kind)
        try:
            value = float(amount)
        except ValueError:
            raise UserError(f"{kind} needs a number, as noise=25 or jpeg=10; got {text!r}") from None
        if not (1 <= value <= 100 if kind == "jpeg" else 0 < value < 256):
            raise UserError(f"{text!r} is out of range: noise is above 0 and below 256, jpeg from 1 to 100")
        return cls(kind, value)

    def check_scale(self, scale: int) -> None:
        """Raise where a model of that scale does not undo it.

        Raises:
            UserError: the model enlarges what did not get smaller, or keeps the size of what did.
        """
        if (self.kind == "bicubic") != (scale > 1):
            raise UserError(
                f"degradation {self.kind!r} does not go with a model of scale {scale}: bicubic is for scales "
                "from 2 on, noise and jpeg keep the size"
            )

    def __call__(self, image: torch.Tensor, scale: int, seed: int) -> torch.Tensor:
        """Degrade an image (c, h, w) with values in [0, 1], sides multiples of `scale`; `seed` fixes the noise."""
        if self.kind == "bicubic":
            sides = [side // scale for side in image.shape[1:]]
            small = F.interpolate(image[None], sides, mode="bicubic", antialias=True)[0]
            return (small * 255).round().clamp(0, 255) / 255
        if self.kind == "noise":
            noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
            return image + noise * (self.amount / 255)  # neither rounded nor cut, as in the published protocols
        buffer = io.BytesIO()
        to_image(image).save(buffer, "JPEG", quality=round(self.amount))
        return to_tensor(Image.open(buffer))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An 8-bit image as float (c, h, w) with values in [0, 1]."""
    values = np.asarray(image, np.float32) / 255
    return torch.from_numpy(values).unsqueeze(0) if values.ndim == 2 else torch.from_numpy(values).permute(2, 0, 1)


def to_image(values: torch.Tensor) -> Image.Image:
    """Values (1 or 3, h, w), cut to [0, 1], as an 8-bit image."""
    levels = (values.detach().float().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return Image.fromarray(levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0)))


@lru_cache(_CACHED)
def read_tensor(path: Path, channels: int) -> torch.Tensor:
    """Read an image file as float (c, h, w) with values in [0, 1].

    Raises:
        BadImageError: it cannot be read.
    """
    image = ImageReader(channels).read(path, str(path))
    assert isinstance(image, Image.Image)
    return to_tensor(image)


def pair_up(targets: Sequence[Path], inputs: Sequence[Path], scale: int) -> list[tuple[Path, Path]]:
    """Find to each sharp image its degraded form: the file of the same stem, or of the stem with "x<scale>" behind.

    Raises:
        UserError: one has none, or several.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in inputs:
        by_stem.setdefault(path.stem.removesuffix(f"x{scale}") if scale > 1 else path.stem, []).append(path)
    pairs = []
    for target in targets:
        stem = target.stem.removesuffix(f"x{scale}") if scale > 1 else target.stem
        found = by_stem.get(stem, [])
        if len(found) != 1:
            raise UserError(
                f"{target} needs one degraded image named {stem} or {stem}x{scale}, found {len(found) or 'none'}"
                + (f": {', '.join(map(str, found[:4]))}" if found else "")
            )
        pairs.append((target, found[0]))
    return pairs


@lru_cache(_CACHED)
def whole_pair(target: Path, given: Path | None, degradation: Degradation | None, channels: int, scale: int) -> Pair:
    """Read a degraded image and the sharp one, cut at the far sides to multiples of `scale`.

    Raises:
        UserError: an image cannot be read, or the two are not `scale` times apart.
    """
    sharp = read_tensor(target, channels)
    height, width = (side - side % scale for side in sharp.shape[1:])
    if not height or not width:
        raise BadImageError(f"image {target} is smaller than the scale of {scale}")
    sharp = sharp[:, :height, :width]
    if given is None:
        assert degradation is not None
        return degradation(sharp, scale, derive_seed("degradation", target.name)), sharp
    low = read_tensor(given, channels)
    if tuple(low.shape[1:]) != (height // scale, width // scale):
        raise BadImageError(
            f"image {given} is of {low.shape[1]} x {low.shape[2]}, expected {height // scale} x {width // scale}: "
            f"that of {target} divided by {scale}"
        )
    return low, sharp


class TrainPatches(Dataset[Pair]):
    """Random patches of pairs, flipped and turned, as a function of seed, epoch and sample.

    Args:
        pairs: Sharp image and its degraded form, None where that is generated.
        samples: Patches per epoch; images take turns.
        degradation: Makes degraded forms.
        channels: Channels of the model.
        scale: How many times larger sharp images are.
        patch: Sides of the degraded patches.
        seed: Fixes everything drawn.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path | None]],
        samples: int,
        *,
        degradation: Degradation | None,
        channels: int,
        scale: int,
        patch: int,
        seed: int,
    ):
        self.pairs, self.samples, self.degradation = list(pairs), samples, degradation
        self.channels, self.scale, self.patch, self.seed = channels, scale, patch, seed

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: SampleKey) -> Pair:
        seed = derive_seed(self.seed, "patch", *key)
        draw = np.random.default_rng(seed)
        target, given = self.pairs[key[0] % len(self.pairs)]
        scale, patch = self.scale, self.patch
        whole = given is not None or (self.degradation is not None and self.degradation.kind == "bicubic")
        if whole:
            low, sharp = whole_pair(target, given, self.degradation, self.channels, scale)
        else:
            sharp = read_tensor(target, self.channels)
        rows, columns = (side // scale for side in sharp.shape[1:])
        if min(rows, columns) < patch:
            raise BadImageError(
                f"image {target} is of {sharp.shape[1]} x {sharp.shape[2]}, too small for patches of {scale * patch}; "
                "lower --patch-size or remove it"
            )
        top, left = int(draw.integers(rows - patch + 1)), int(draw.integers(columns - patch + 1))
        sharp = sharp[:, scale * top : scale * (top + patch), scale * left : scale * (left + patch)]
        if whole:
            low = low[:, top : top + patch, left : left + patch]
        else:
            assert self.degradation is not None
            low = self.degradation(sharp, scale, seed)
        turns, mirrored = int(draw.integers(4)), bool(draw.integers(2))
        both = [torch.rot90(image.flip(2) if mirrored else image, turns, (1, 2)) for image in (low, sharp)]
        return both[0].contiguous(), both[1].contiguous()


class WholePairs(Dataset[Pair]):
    """Whole pairs for evaluation; arguments as of `TrainPatches`."""

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path | None]],
        *,
        degradation: Degradation | None,
        channels: int,
        scale: int,
    ):
        self.pairs, self.degradation, self.channels, self.scale = list(pairs), degradation, channels, scale

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        target, given = self.pairs[index]
        return whole_pair(target, given, self.degradation, self.channels, self.scale)


class DeviceLoader:
    """Batches of a loader, on a device."""

    def __init__(self, loader: DataLoader, device: torch.device):
        self.loader, self.device = ExplainedLoader(loader), device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield tuple(value.to(self.device, non_blocking=True) for value in batch)


def create_patch_loader(
    patches: TrainPatches, device: torch.device, world: World, *, batch_size: int, workers: int
) -> TrainLoader:
    """Training batches of patches, from any batch of any epoch on.

    Raises:
        UserError: An epoch has fewer patches than a batch.
    """
    sampler = EpochBatches(len(patches), batch_size, seed=patches.seed, rank=world.rank, world_size=world.size)
    if not len(sampler):
        raise UserError(f"an epoch of {len(patches)} patches is too short for a batch of {batch_size}")
    loader: DataLoader = DataLoader(
        patches,
        batch_sampler=sampler,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        pin_memory=device.type == "cuda",
    )
    return TrainLoader(DeviceLoader(loader, device), sampler, None, None)


def create_pair_loader(pairs: WholePairs, device: torch.device, world: World, *, workers: int) -> DeviceLoader:
    """Whole pairs one by one, each read by one of the processes."""
    sampler = EvaluationIndices(len(pairs), rank=world.rank, world_size=world.size)
    return DeviceLoader(
        DataLoader(pairs, batch_size=1, sampler=sampler, num_workers=workers, worker_init_fn=ignore_signals), device
    )
