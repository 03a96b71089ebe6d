"""Loaders that give normalised batches on the device."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from timm.data import Mixup, create_loader, create_transform, resolve_data_config
from timm.data.loader import PrefetchLoader, fast_collate
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader, IterableDataset

from ...errors import UserError
from .datasets import ReadableImages, image_mode, open_dataset
from .processes import World
from .sampling import EpochBatches, EvaluationIndices
from .workers import ExplainedLoader, ignore_signals

Batch = tuple[torch.Tensor, torch.Tensor]


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
        sampler: EpochBatches | None,
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
        """Iterate over an epoch; streamed data sets always start at its beginning."""
        if self.mixup is not None:
            self.mixup.mixup_enabled = not (self.mixup_off_epoch and epoch >= self.mixup_off_epoch)
        if self.sampler is not None:
            self.sampler.start_at(epoch, first_batch)
        elif hasattr(self.batches.loader.dataset, "set_epoch"):
            self.batches.loader.dataset.set_epoch(epoch)
        return iter(self.batches)

    def augment(self, images: torch.Tensor, labels: torch.Tensor) -> Batch:
        """Erase and mix a normalised batch."""
        if self.erasing is not None:
            images = self.erasing(images)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        return images, labels


def create_mixup(args: argparse.Namespace, num_classes: int) -> Mixup | None:
    """Return timm's Mixup for the options, or None when nothing is mixed."""
    if args.mixup <= 0 and args.cutmix <= 0 and args.cutmix_minmax is None:
        return None
    if args.batch_size % 2:
        raise UserError(f"mixup and cutmix pair images, so --batch-size must be even, found {args.batch_size}")
    return Mixup(
        mixup_alpha=args.mixup,
        cutmix_alpha=args.cutmix,
        cutmix_minmax=args.cutmix_minmax,
        prob=args.mixup_prob,
        switch_prob=args.mixup_switch_prob,
        mode=args.mixup_mode,
        label_smoothing=args.smoothing,
        num_classes=num_classes,
    )


def open_split(args: argparse.Namespace, split: str, training: bool) -> torch.utils.data.Dataset:
    """Open the training or validation split that the options describe."""
    mode = args.input_img_mode or image_mode(args.in_chans or 3)
    return open_dataset(
        args.dataset,
        args.data_dir,
        split,
        class_map=args.class_map,
        is_training=training,
        download=args.dataset_download,
        batch_size=args.batch_size,
        num_samples=args.train_num_samples if training else args.val_num_samples,
        seed=args.seed,
        repeats=args.epoch_repeats if training else 0,
        input_img_mode=mode,
        input_key=args.input_key,
        target_key=args.target_key,
    )


def create_train_loader(
    dataset: torch.utils.data.Dataset,
    args: argparse.Namespace,
    data_config: dict,
    num_classes: int,
    device: torch.device,
    world: World,
) -> TrainLoader:
    """Build the training loader.

    Raises:
        UserError: The data set has fewer samples than one batch of all processes needs.
    """
    augmentation = dict(
        no_aug=args.no_aug,
        train_crop_mode=args.train_crop_mode,
        scale=args.scale,
        ratio=args.ratio,
        hflip=args.hflip,
        vflip=args.vflip,
        color_jitter=args.color_jitter,
        color_jitter_prob=args.color_jitter_prob,
        grayscale_prob=args.grayscale_prob or 0.0,
        gaussian_blur_prob=args.gaussian_blur_prob or 0.0,
        auto_augment=args.aa,
        interpolation=data_config["interpolation"] if args.no_aug else args.train_interpolation,
        mean=data_config["mean"],
        std=data_config["std"],
    )
    mixup = create_mixup(args, num_classes)
    erase = args.reprob > 0 and not args.no_aug
    if isinstance(dataset, IterableDataset):
        stream = create_loader(
            dataset,
            input_size=data_config["input_size"],
            batch_size=args.batch_size,
            is_training=True,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
            num_workers=args.workers,
            distributed=world.size > 1,
            device=device,
            pin_memory=args.pin_mem,
            persistent_workers=False,
            **augmentation,
        )
        return TrainLoader(_stream(stream), None, None, mixup, args.mixup_off_epoch)

    transform = create_transform(data_config["input_size"], is_training=True, use_prefetcher=True, **augmentation)
    images = ReadableImages(dataset, transform, seed=args.seed, bad_images=args.bad_images)
    sampler = EpochBatches(
        len(images), args.batch_size, seed=args.seed, rank=world.rank, world_size=world.size, repeats=args.aug_repeats
    )
    if not len(sampler):
        raise UserError(
            f"the training split has {len(images)} images, too few for one batch of "
            f"{args.batch_size} in {world.size} process(es); lower --batch-size"
        )
    loader = DataLoader(images, batch_sampler=sampler, **_worker_options(args.workers, args.pin_mem))
    erasing = RandomErasing(args.reprob, mode=args.remode, max_count=args.recount, device=device) if erase else None
    return TrainLoader(_on_device(loader, data_config, device), sampler, erasing, mixup, args.mixup_off_epoch)


def create_eval_loader(
    dataset: torch.utils.data.Dataset,
    data_config: dict,
    *,
    batch_size: int,
    workers: int,
    device: torch.device,
    world: World | None = None,
    pin_memory: bool = False,
    bad_images: str = "refuse",
) -> PrefetchLoader | ExplainedLoader:
    """Build an evaluation loader; every sample is read once by one of the processes."""
    world = world or World()
    if isinstance(dataset, IterableDataset):
        stream = create_loader(
            dataset,
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
        return _stream(stream)
    transform = create_transform(
        data_config["input_size"],
        is_training=False,
        use_prefetcher=True,
        interpolation=data_config["interpolation"],
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config["crop_mode"],
    )
    loader = DataLoader(
        ReadableImages(dataset, transform, bad_images=bad_images, mode=image_mode(data_config["input_size"][0])),
        batch_size=batch_size,
        sampler=EvaluationIndices(len(dataset), rank=world.rank, world_size=world.size),
        **_worker_options(workers, pin_memory),
    )
    return _on_device(loader, data_config, device)


def _on_device(loader: DataLoader, data_config: dict, device: torch.device) -> PrefetchLoader:
    """Float batches, normalised on the device; to a GPU each is copied while the one before it is worked on."""
    channels = data_config["input_size"][0]
    return PrefetchLoader(ExplainedLoader(loader), data_config["mean"], data_config["std"], channels, device)


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
