"""Loaders that give normalised batches on the device."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import Mixup, auto_augment, create_loader, create_transform, resolve_data_config
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader, IterableDataset

from ...errors import UserError
from .datasets import ReadableImages
from .images import ChannelTransform, ImageReader
from .processes import World
from .sampling import EpochBatches, EvaluationIndices, StreamBatches, StreamEvaluation
from .streams import WINDOW, StreamedImages, enterable
from .workers import ExplainedLoader, ignore_signals

Batch = tuple[torch.Tensor, torch.Tensor]


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """timm's operation, which also draws 0 bits: a black image, which Pillow 13 refuses to make."""
    if bits_to_keep < 1:
        return image.point([0] * 256 * len(image.getbands()))
    return _timms_posterize(image, bits_to_keep)


_timms_posterize = auto_augment.posterize
auto_augment.NAME_TO_OP.update(
    {name: _posterize for name, operation in auto_augment.NAME_TO_OP.items() if operation is _timms_posterize}
)


def data_config(options: Mapping[str, Any], pretrained_cfg: Mapping[str, Any], channels: int | None) -> dict[str, Any]:
    """Resolve how images are prepared, as timm does; mean and deviation follow the channels.

    A model's own mean and deviation are averaged where it is built for another number of channels.

    Args:
        options: timm's data options (`input_size`, `img_size`, `mean`, `std`, `crop_pct`, ...); None means not given.
        pretrained_cfg: The model's defaults.
        channels: Input channels of the model; None for those of `pretrained_cfg`.

    Returns:
        `input_size` (channels, height, width), `mean` and `std` (one value per channel, 0 to 1), `interpolation`,
        `crop_pct` and `crop_mode`.

    Raises:
        UserError: The options contradict each other.
    """
    given = {name: value for name, value in options.items() if value is not None}
    own = tuple(pretrained_cfg.get("input_size") or (3, 224, 224))
    channels = channels or own[0]
    size = given.get("input_size")
    if size is not None and size[0] != channels:
        raise UserError(
            f"the model takes {channels} channel(s), but --input-size {' '.join(map(str, size))} has {size[0]}"
        )
    for name in ("mean", "std"):
        if len(given.get(name, ())) not in (0, 1, channels):
            raise UserError(f"--{name} holds {len(given[name])} values, expected 1 or {channels}, one per channel")
    config = resolve_data_config(
        given | {"in_chans": channels}, pretrained_cfg=dict(pretrained_cfg) | {"input_size": (channels, *own[1:])}
    )
    for name in ("mean", "std"):
        if len(config[name]) != channels:
            config[name] = (sum(config[name]) / len(config[name]),) * channels
    return config


class TrainLoader:
    """Training batches of one epoch, from any batch of it on.

    `augment` (random erasing, mixup and cutmix on the device) is separate from reading, because the caller seeds it
    by the step it belongs to.
    """

    def __init__(
        self,
        batches: Any,
        sampler: EpochBatches | StreamBatches | None,
        erasing: RandomErasing | None,
        mixup: Mixup | None,
        mixup_off_epoch: int = 0,
    ):
        self.batches = batches
        self.sampler = sampler
        self.erasing = erasing
        self.mixup = mixup
        self.mixup_off_epoch = mixup_off_epoch

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """Iterate over an epoch; streams that cannot be entered anywhere start at its beginning."""
        if self.mixup is not None:
            self.mixup.mixup_enabled = not (self.mixup_off_epoch and epoch >= self.mixup_off_epoch)
        if self.sampler is not None:
            self.sampler.start_at(epoch, first_batch)
        elif hasattr(self.batches.loader.dataset, "set_epoch"):
            self.batches.loader.dataset.set_epoch(epoch)
        return iter(self.batches)

    @property
    def num_samples(self) -> int | None:
        """Samples of an epoch before it is cut into steps; None where a stream does not tell."""
        return None if self.sampler is None else self.sampler.num_samples

    def layout(self) -> dict[str, int] | None:
        """Return how a stream is dealt out, which a continued run has to know."""
        return self.sampler.layout() if isinstance(self.sampler, StreamBatches) else None

    def adopt(self, layout: dict[str, int] | None, images_per_step: int) -> None:
        """Deal out a stream as an earlier run did that had so many images per step."""
        if isinstance(self.sampler, StreamBatches) and layout:
            self.sampler.adopt(layout, images_per_step)

    def augment(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        """Erase and mix a normalised batch."""
        if self.erasing is not None:
            images = self.erasing(images)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        return images, labels


def create_mixup(
    num_classes: int,
    batch_size: int,
    *,
    mixup: float,
    cutmix: float,
    cutmix_minmax: Sequence[float] | None,
    probability: float,
    switch_probability: float,
    mode: str,
    smoothing: float,
) -> Mixup | None:
    """Return timm's Mixup, or None when nothing is mixed.

    Raises:
        UserError: The images of a batch cannot be paired.
    """
    if mixup <= 0 and cutmix <= 0 and cutmix_minmax is None:
        return None
    if batch_size % 2:
        raise UserError(f"mixup and cutmix pair images, so --batch-size must be even, found {batch_size}")
    return Mixup(
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        cutmix_minmax=cutmix_minmax,
        prob=probability,
        switch_prob=switch_probability,
        mode=mode,
        label_smoothing=smoothing,
        num_classes=num_classes,
    )


def create_train_loader(
    dataset: torch.utils.data.Dataset,
    data_config: dict,
    device: torch.device,
    world: World,
    *,
    batch_size: int,
    workers: int,
    seed: int,
    augmentation: Mapping[str, Any],
    erasing: tuple[float, str, int] | None = None,
    mixup: Mixup | None = None,
    mixup_off_epoch: int = 0,
    repeats: int = 0,
    pin_memory: bool = False,
    bad_images: str = "refuse",
    reader: ImageReader | None = None,
    sample_weights: Sequence[float] | None = None,
    num_samples: int | None = None,
) -> TrainLoader:
    """Build the training loader.

    Args:
        dataset: Map-style, or streamed.
        data_config: As from `data_config`.
        device: Where the batches go.
        world: Processes that share an epoch.
        batch_size: Images per batch and process.
        workers: Loader processes.
        seed: Seed of order and augmentation.
        augmentation: Arguments of timm's training transform.
        erasing: Probability, fill and largest number of random erasing's regions, or None.
        mixup: Mixes batches on the device.
        mixup_off_epoch: No mixing from this epoch on; 0 never.
        repeats: Copies of a sample per epoch.
        pin_memory: Pin host memory for faster copies to a GPU.
        bad_images: As for `ReadableImages`.
        reader: Brings images to the model's channels.
        sample_weights: Draw samples with these weights instead of each once.
        num_samples: Samples of an epoch of a stream; None for those that it says it has.

    Raises:
        UserError: The data set has fewer samples than one batch of all processes needs.
    """
    source = enterable(dataset)
    if isinstance(dataset, IterableDataset) and source is None:
        probability, fill, count = erasing or (0.0, "const", 1)
        stream = create_loader(
            dataset,  # type: ignore[arg-type]  # any stream will do
            input_size=data_config["input_size"],
            batch_size=batch_size,
            is_training=True,
            re_prob=probability,
            re_mode=fill,
            re_count=count,
            num_workers=workers,
            distributed=world.size > 1,
            device=device,
            pin_memory=pin_memory,
            persistent_workers=False,
            **augmentation,
        )
        _read_with(dataset, reader)
        return TrainLoader(_stream(stream), None, None, mixup, mixup_off_epoch)

    transform = create_transform(data_config["input_size"], is_training=True, use_prefetcher=True, **augmentation)
    images: ReadableImages | StreamedImages
    sampler: EpochBatches | StreamBatches
    options: dict[str, Any] = dict(seed=seed, bad_images=bad_images, reader=reader)
    if source is None:
        images = ReadableImages(dataset, ChannelTransform(transform), **options)
        sampler = EpochBatches(
            len(images),
            batch_size,
            seed=seed,
            rank=world.rank,
            world_size=world.size,
            repeats=repeats,
            weights=sample_weights,
        )
    else:
        images = StreamedImages(source, ChannelTransform(transform), **options)
        if num_samples is not None and num_samples > len(images) and not source.relative:
            raise UserError(f"--train-num-samples {num_samples} is more than the {len(images)} samples of the shards")
        sampler = StreamBatches(
            len(images) if num_samples is None else num_samples,
            batch_size,
            rank=world.rank,
            world_size=world.size,
            lanes=max(workers, 1),
            window=WINDOW,
            relative=source.relative,
        )
    if not len(sampler):
        raise UserError(
            f"the training split has {len(images)} images, too few for one batch of "
            f"{batch_size} in {world.size} process(es); lower --batch-size"
        )
    loader = DataLoader(images, batch_sampler=sampler, **_worker_options(workers, pin_memory))
    eraser = None
    if erasing is not None:
        probability, fill, count = erasing
        eraser = RandomErasing(probability, mode=fill, max_count=count, device=device)
    return TrainLoader(_on_device(loader, data_config, device), sampler, eraser, mixup, mixup_off_epoch)


def create_eval_loader(
    dataset: Any,
    data_config: dict,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    world: World | None = None,
    pin_memory: bool = False,
    bad_images: str = "refuse",
    reader: ImageReader | None = None,
    indices: Sequence[int] | None = None,
) -> PrefetchLoader | ExplainedLoader:
    """Build an evaluation loader; every sample, or each of `indices`, is read once by one of the processes."""
    world = world or World()
    source = enterable(dataset)
    source = None if source is None or source.relative else source
    if isinstance(dataset, IterableDataset) and source is None:
        stream = create_loader(
            dataset,  # type: ignore[arg-type]  # any stream will do
            input_size=data_config["input_size"],
            batch_size=batch_size,
            is_training=False,
            interpolation=data_config["interpolation"],
            mean=data_config["mean"],
            std=data_config["std"],
            crop_pct=data_config["crop_pct"],
            crop_mode=data_config["crop_mode"],
            num_workers=workers,
            distributed=world.size > 1,
            device=device,
            pin_memory=pin_memory,
            persistent_workers=False,
        )
        _read_with(dataset, reader)
        return _stream(stream)
    transform = create_transform(
        data_config["input_size"],
        is_training=False,
        use_prefetcher=True,
        interpolation=data_config["interpolation"],
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config["crop_mode"],
    )
    if source is not None:
        lanes = max(workers, 1)
        stream = StreamedImages(source, ChannelTransform(transform), bad_images=bad_images, reader=reader)
        batches = StreamEvaluation(len(source), batch_size, rank=world.rank, world_size=world.size, lanes=lanes)
        loader = DataLoader(stream, batch_sampler=batches, **_worker_options(workers, pin_memory))
        return _on_device(loader, data_config, device)
    loader = DataLoader(
        ReadableImages(dataset, ChannelTransform(transform), bad_images=bad_images, reader=reader),
        batch_size=batch_size,
        sampler=indices or EvaluationIndices(len(dataset), rank=world.rank, world_size=world.size),
        **_worker_options(workers, pin_memory),
    )
    return _on_device(loader, data_config, device)


def _on_device(loader: DataLoader, data_config: dict, device: torch.device) -> PrefetchLoader:
    """Float batches, normalised on the device; to a GPU each is copied while the one before it is worked on."""
    channels = data_config["input_size"][0]
    explained: Any = ExplainedLoader(loader)  # any iterable will do
    return PrefetchLoader(explained, data_config["mean"], data_config["std"], channels, device)


def _read_with(dataset: Any, reader: ImageReader | None) -> None:
    """Bring a stream's images to the model's channels before timm's transform."""
    dataset.transform = _Converted(reader or ImageReader(), ChannelTransform(dataset.transform))


class _Converted:
    def __init__(self, reader: ImageReader, transform: Any):
        self.reader, self.transform = reader, transform

    def __call__(self, image: Any) -> Any:
        return self.transform(self.reader.convert(image, "of the stream"))


def _stream(loader: Any) -> ExplainedLoader:
    """timm's loader of a streamed data set, with processes that end as ours do."""
    inner = getattr(loader, "loader", loader)  # timm may wrap torch's
    inner.worker_init_fn = partial(_start_process, inner.worker_init_fn)
    return ExplainedLoader(loader)


def _start_process(also: Callable[[int], None] | None, worker: int) -> None:
    ignore_signals(worker)
    if also is not None:
        also(worker)


def _worker_options(workers: int, pin_memory: bool) -> dict[str, Any]:
    return dict(num_workers=workers, pin_memory=pin_memory, collate_fn=fast_collate, worker_init_fn=ignore_signals)
