"""What `benchmark --loader` does: how many images per second the loaders alone bring, and what would bring more."""

import argparse
import itertools
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from ..engine.data.datasets import open_dataset
from ..engine.data.images import ChannelTransform, ImageReader
from ..engine.data.loaders import create_train_loader, data_config
from ..engine.data.processes import World
from ..engine.data.workers import loader_processes_ended
from ..engine.reports.rows import write_rows
from ..errors import UserError
from ._arguments import parse_args
from ._benchmarking import benchmark, model_names
from ._options import AugmentationOptions, cut

SAMPLED = 48  # images whose parts are timed one by one


def loading(args: argparse.Namespace, device: torch.device) -> int:
    """Measure every setting, print a line for each and what to do.

    Raises:
        UserError: There is no data, or an option has no use here.
    """
    if not args.data_dir:
        raise UserError("--loader measures reading: name the images with --data-dir")
    if not all(workers >= 0 for workers in args.workers):
        raise UserError(f"--workers takes 0 and more, got {' '.join(map(str, args.workers))}")
    needed, why = args.needed, "--needed"
    if needed is None and (args.model or args.checkpoint):
        names = model_names(args)
        if len(names) != 1:
            raise UserError(f"--loader compares with one model, --model names {len(names)}")
        size = args.img_size[0] if args.img_size else None
        row = benchmark(names[0], args.batch_size[0], size, "train", args, device)
        if row["status"] != "ok":
            raise UserError(f"{row['model']} does not fit with --batch-size {args.batch_size[0]}; take a smaller one")
        needed, why = row["images_per_second"], f"{row['model']} at {row['img_size']} px on {device.type}"
        print(f"{why}, training: {needed:.1f} img/s", flush=True)
    rows = []
    for size, decoder, workers, batch in itertools.product(
        args.img_size or [224], args.decoder, args.workers, args.batch_size
    ):
        row = measure_loader(args, size, decoder, workers, batch)
        rows.append(row)
        print(
            f"{size:4d} px  {decoder:12s} {workers:3d} workers  batch {batch:4d}  {row['images_per_second']:9.1f} img/s"
            f"  first batch after {row['first_batch_s']:.1f} s",
            flush=True,
        )
        if args.results_file:
            write_rows(args.results_file, rows, args.results_format)
    parts = time_parts(args, (args.img_size or [224])[0])
    print(
        f"one image in one process, of {parts['images']}: read {parts['read_ms']:.2f} ms, "
        + ", ".join(f"decode with {name} {parts[f'{name}_ms']:.2f} ms" for name in args.decoder)
        + f", augment {parts['augment_ms']:.2f} ms; {parts['width']:.0f} x {parts['height']:.0f} px, "
        f"{parts['kilobytes']:.0f} kB on average"
    )
    for sentence in advice(rows, parts, needed, why, os.cpu_count() or 1):
        print(f"- {sentence}")
    return 0


def training_data(args: argparse.Namespace) -> Any:
    """Open the split as training does."""
    return open_dataset(
        args.dataset, args.data_dir, args.split, is_training=True, batch_size=args.batch_size[0], seed=42
    )


def augmentation(size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the data configuration of a size, and the arguments of timm's training transform by default."""
    config = data_config({"input_size": (3, size, size)}, {}, 3)
    return config, cut(AugmentationOptions, parse_args([])).transform(config)


def measure_loader(args: argparse.Namespace, size: int, decoder: str, workers: int, batch: int) -> dict[str, Any]:
    """Read batches for --loader-seconds after the first one, epoch after epoch; they stay on the CPU.

    Returns:
        A row: the setting, images per second, images counted, seconds until the first batch.
    """
    config, transform = augmentation(size)
    loader = create_train_loader(
        training_data(args),
        config,
        torch.device("cpu"),
        World(),
        batch_size=batch,
        workers=workers,
        seed=42,
        augmentation=transform,
        reader=ImageReader(decoder=decoder),
    )

    def batches() -> Generator[Any, None, None]:
        for epoch in itertools.count():
            yield from loader.epoch(epoch)

    with loader_processes_ended():
        begun = time.perf_counter()
        stream = batches()
        next(stream)
        first = time.perf_counter()
        images, now = 0, first
        while now - first < args.loader_seconds or not images:
            images += len(next(stream)[0])
            now = time.perf_counter()
        stream.close()
    return {
        "img_size": size,
        "decoder": decoder,
        "workers": workers,
        "batch_size": batch,
        "images_per_second": round(images / (now - first), 1),
        "images": images,
        "first_batch_s": round(first - begun, 2),
    }


def time_parts(args: argparse.Namespace, size: int) -> dict[str, float]:
    """Time reading, decoding and augmenting of some images in this process, in milliseconds per image."""
    from timm.data import create_transform

    from ..engine.data.streams import enterable

    dataset = training_data(args)
    source = enterable(dataset)
    started = time.perf_counter()
    if source is not None:
        cursor = {"lane": (0, 1)} if source.relative else {}
        raws = source.read(-1, 42, 0, min(SAMPLED, len(source)), cursor)
        contents = [raw.image if isinstance(raw.image, bytes) else Path(raw.image).read_bytes() for raw in raws]
    elif hasattr(dataset, "reader") and hasattr(dataset, "__getitem__"):
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:SAMPLED].tolist()
        contents = []
        for index in order:
            with dataset.reader[index][0] as file:
                contents.append(file.read())
    else:
        raise UserError(f"--loader reads image folders, tar files and streams, not {args.dataset!r}")
    read = time.perf_counter() - started
    found: dict[str, float] = {"images": len(contents), "read_ms": 1000 * read / len(contents)}
    images: list[Any] = []
    for decoder in args.decoder:
        reader = ImageReader(decoder=decoder)
        started = time.perf_counter()
        images = [reader.read(_file(content), "sampled") for content in contents]
        found[f"{decoder}_ms"] = 1000 * (time.perf_counter() - started) / len(contents)
    transform = ChannelTransform(create_transform(size, is_training=True, use_prefetcher=True, **augmentation(size)[1]))
    started = time.perf_counter()
    for image in images:
        transform(image)
    found["augment_ms"] = 1000 * (time.perf_counter() - started) / len(images)
    found["width"] = sum(image.width for image in images) / len(images)
    found["height"] = sum(image.height for image in images) / len(images)
    found["kilobytes"] = sum(map(len, contents)) / len(contents) / 1000
    return found


def _file(content: bytes) -> Any:
    from io import BytesIO

    return BytesIO(content)


def advice(
    rows: list[dict[str, Any]], parts: dict[str, float], needed: float | None, why: str, cores: int
) -> list[str]:
    """Return what the numbers say: which setting, whether it is enough, and what would bring more.

    Args:
        rows: As from `measure_loader`.
        parts: As from `time_parts`.
        needed: Images per second that are eaten, or None.
        why: Who eats them.
        cores: Of the processor.
    """
    best = max(rows, key=lambda row: row["images_per_second"])
    rate = best["images_per_second"]
    said = [f"fastest: {rate:.1f} img/s with --workers {best['workers']} and --decoder {best['decoder']}"]
    each = max((r["images_per_second"] / r["workers"] for r in rows if r["workers"]), default=rate)
    if needed is not None:
        if rate >= 1.1 * needed:
            said.append(f"enough: {why} eats {needed:.1f} img/s, {100 * needed / rate:.0f} % of it")
            return said
        wanted = -(-1.1 * needed // each)
        said.append(
            f"not enough: {why} eats {needed:.1f} img/s; a loader process brings up to {each:.1f}, so about "
            f"{wanted:.0f} of them per training process"
            + ("" if wanted <= cores else f", more than the {cores} cores here")
        )
    cheapest = min(parts[f"{row['decoder']}_ms"] for row in rows)
    decode = parts[f"{best['decoder']}_ms"]
    if cheapest < 0.9 * decode:
        name = min({row["decoder"] for row in rows}, key=lambda name: parts[f"{name}_ms"])
        said.append(f"--decoder {name} decodes in {100 * cheapest / decode:.0f} % of the time")
    size = best["img_size"]
    if decode > parts["augment_ms"] and min(parts["width"], parts["height"]) > 1.5 * size:
        said.append(
            f"decoding takes the most, of images {min(parts['width'], parts['height']) / size:.1f} times as large as "
            f"needed: store them with a shorter side of about {round(size * 1.15)} px"
        )
    if parts["read_ms"] > decode + parts["augment_ms"]:
        said.append("reading takes the most: read shards, which lie in a row on the disk (tools/shards.py)")
    return said
