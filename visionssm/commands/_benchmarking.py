"""What the benchmark command does: one model in one setting measured, and the picture of all."""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..analysis.flops import count
from ..engine.inference.models import autocast, expand_names
from ..engine.reports.plots import draw_lines
from ..errors import UserError
from ._inference_options import read_classifier


def measure(step: Callable[[], None], device: torch.device, warm: int, repeats: int) -> tuple[float, float | None]:
    """Time a step.

    Returns:
        Median seconds, and the peak of allocated bytes while measuring (None where the device does not tell).
    """
    on_gpu = device.type == "cuda"
    for _ in range(warm):
        step()
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), torch.cuda.max_memory_allocated(device) if on_gpu else None


def share_of_scans(step: Callable[[], None]) -> float:
    """Profile a step on a CPU.

    Returns:
        The part of its time, between 0 and 1, that this package's operators take: the scans and their gradients.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        step()
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    return sum(event.cpu_time_total for event in events if event.key.startswith("visionssm::")) / total


def make_step(model: torch.nn.Module, images: torch.Tensor, mode: str, precision: Callable) -> Callable[[], None]:
    """Return a function that runs one inference or one training step (cross-entropy, SGD without momentum)."""
    if mode == "inference":
        model.eval()

        @torch.inference_mode()
        def infer() -> None:
            with precision():
                model(images)

        return infer
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def train() -> None:
        with precision():
            loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train


def benchmark(
    name: str | None, batch: int, size: int | None, mode: str, args: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Measure one model in one setting.

    Returns:
        A row: what was measured, images per second, milliseconds per step, peak memory in MiB (None on the CPU), the
        scans' share of the time (None on a GPU), parameters and multiply-adds. `status` says "out of memory" where it
        did not fit.

    Raises:
        UserError: The model cannot be built or does not run at this size.
    """
    classifier = read_classifier(args, name, images={"img_size": size})  # of the sizes swept, this one
    model, name = classifier.model, classifier.name
    channels, _, own = classifier.data_config["input_size"]
    size = size or own
    kwargs = {**args.model_kwargs, **({"scan": args.scan} if args.scan else {})}
    row: dict[str, Any] = {
        "model": name,
        "model_kwargs": " ".join(f"{key}={value}" for key, value in kwargs.items()),
        "bench": mode,
        "batch_size": batch,
        "img_size": size,
        "precision": precision_name(args),
        "device": device.type,
    }
    try:
        cost = count(model, (channels, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{name} does not run at {size} pixels: {message}") from error
    dtype = getattr(torch, args.model_dtype) if args.model_dtype else torch.float32
    lower = args.amp_dtype if args.amp else None
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    if args.grad_checkpointing:
        model.set_grad_checkpointing(True)
    try:
        model = model.to(device, dtype=dtype, memory_format=layout)
        images = torch.randn(batch, channels, size, size, device=device, dtype=dtype).to(memory_format=layout)
        runnable = (
            torch.compile(model, backend=args.torchcompile, mode=args.torchcompile_mode) if args.torchcompile else model
        )
        step = make_step(runnable, images, mode, autocast(device, lower))
        seconds, memory = measure(step, device, args.num_warm_iter, args.num_bench_iter)
        result = {
            "images_per_second": round(batch / seconds, 2),
            "step_ms": round(1000 * seconds, 3),
            "peak_memory_mib": None if memory is None else round(memory / 2**20, 1),
            "scan_share": round(share_of_scans(step), 3) if device.type == "cpu" else None,
            "status": "ok",
        }
    except torch.cuda.OutOfMemoryError:
        measured = ("images_per_second", "step_ms", "peak_memory_mib", "scan_share")
        result = {**dict.fromkeys(measured), "status": "out of memory"}
    return (
        row | result | {"param_count_m": round(cost.parameters / 1e6, 3), "gmacs": round(cost.multiply_adds / 1e9, 4)}
    )


def precision_name(args: argparse.Namespace) -> str:
    """Return what a row calls the precision: that of the weights, and what autocast lowers it to."""
    return f"{args.model_dtype or 'float32'}{f', amp {args.amp_dtype}' if args.amp else ''}"


def model_names(args: argparse.Namespace) -> list[str | None]:
    """Return the models to measure; None for that of the checkpoint.

    Raises:
        UserError: There is none, or a checkpoint and several models.
    """
    if not args.model:
        return [None]
    names = expand_names(args.model)
    if args.checkpoint and len(names) > 1:
        raise UserError(f"--checkpoint belongs to one model, --model names {len(names)}")
    return list(names)


def plot(rows: Sequence[dict[str, Any]], args: argparse.Namespace, device: torch.device) -> None:
    """Draw throughput, and memory where it is known, over the swept quantity or per model."""
    swept = "img_size" if args.img_size and len(args.img_size) > 1 else "batch_size"
    fixed = "batch_size" if swept == "img_size" else "img_size"
    several_fixed = len({row[fixed] for row in rows}) > 1
    unit = {"img_size": "px", "batch_size": "images per step"}
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        label = row["model"] + (f" {row['bench']}" if args.bench == "both" else "")
        label += f", {row[fixed]} {unit[fixed]}" if several_fixed else ""
        lines.setdefault(label, []).append(row)
    panels = [("images_per_second", "images per second")]
    if any(row["peak_memory_mib"] is not None for row in rows):
        panels.append(("peak_memory_mib", "peak memory (MiB)"))
    axis = {"img_size": "input height and width (pixels)", "batch_size": "images per step"}[swept]
    what = {"inference": "Inference", "train": "Training step", "both": "Inference and training step"}[args.bench]
    known = [name for name in ("batch_size", "img_size") if len({row[name] for row in rows}) == 1]
    note = "".join(f", {rows[0][name]} {unit[name]}" for name in known)
    draw_lines(lines, swept, axis, panels, args.plot, f"{what} on {device.type}, {precision_name(args)}{note}")
    print(f"picture: {args.plot}")
