"""The benchmark command: throughput, memory and multiply-adds of any timm models, side by side in one run."""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..analysis.flops import count
from ..engine.data.processes import resolve_device
from ..engine.inference.models import autocast, expand_names
from ..engine.reports.plots import draw_lines
from ..engine.reports.rows import write_rows
from ..errors import UserError
from ._help import HelpFormatter
from ._inference_options import add_model_options, read_classifier


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the benchmark command; flags keep timm's names and take lists to sweep."""
    parser = argparse.ArgumentParser(
        prog="benchmark.py",
        usage="benchmark.py (--model NAME [NAME ...] | --checkpoint FILE) [--bench both] [--plot PNG] [options]",
        description="Measure models; several values of --batch-size or --img-size sweep it.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--model", nargs="+", metavar="NAME", help="timm model names or patterns; a run's checkpoint says it itself")
    add("--bench", choices=("inference", "train", "both"), default="inference", help="what is measured")
    add("-b", "--batch-size", nargs="+", type=int, default=[64], metavar="N", help="images per step")
    add("--img-size", nargs="+", type=int, metavar="N", help="input height and width; the model's own when not given")
    add("--num-warm-iter", type=int, default=5, metavar="N", help="steps before measuring")
    add("--num-bench-iter", type=int, default=20, metavar="N", help="steps measured")
    add(
        "--precision",
        choices=("float32", "amp", "amp_bfloat16", "float16", "bfloat16"),
        default="float32",
        help="amp keeps float32 weights, float16 and bfloat16 do not",
    )
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--grad-checkpointing", action="store_true", help="recompute activations in the backward pass")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile the model")
    add("--torchcompile-mode", metavar="MODE", help="torch.compile mode")
    add("--device", default="auto", metavar="NAME", help="cuda, cpu, ...; auto takes the GPU when there is one")
    add("--threads", type=int, metavar="N", help="CPU threads; torch's choice when not given")
    add("--results-file", metavar="FILE", help="write the rows here")
    add("--results-format", choices=("csv", "json"), help="format of that file; by its ending when not given")
    add("--plot", metavar="PNG", help="picture of throughput, and of memory where it is known")
    add_model_options(parser, model_help=None)
    return parser


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
    row: dict[str, Any] = {
        "model": name,
        "bench": mode,
        "batch_size": batch,
        "img_size": size,
        "precision": args.precision,
        "device": device.type,
    }
    try:
        cost = count(model, (channels, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{name} does not run at {size} pixels: {message}") from error
    dtype = getattr(torch, args.precision, torch.float32)
    lower = {"amp": "float16", "amp_bfloat16": "bfloat16"}.get(args.precision)
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


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark command and return its exit code."""
    args = build_parser().parse_args(argv)
    rows: list[dict[str, Any]] = []
    try:
        device = resolve_device(args.device)
        if args.threads:
            torch.set_num_threads(args.threads)
        modes = ("inference", "train") if args.bench == "both" else (args.bench,)
        settings = itertools.product(model_names(args), modes, args.img_size or [None], args.batch_size)
        for name, mode, size, batch in settings:
            row = benchmark(name, batch, size, mode, args, device)
            rows.append(row)
            rate = (
                f"{row['images_per_second']:10.1f} img/s  {row['step_ms']:9.2f} ms/step"
                if row["status"] == "ok"
                else row["status"]
            )
            memory = f"  {row['peak_memory_mib']:9.1f} MiB" if row["peak_memory_mib"] is not None else ""
            share = f"  scans {row['scan_share']:4.0%}" if row["scan_share"] is not None else ""
            print(
                f"{row['model']:28s} {mode:9s} batch {batch:4d}  {row['img_size']:4d} px  {rate}{memory}{share}"
                f"  {row['param_count_m']:7.2f} M  {row['gmacs']:7.3f} GMACs",
                flush=True,
            )
            if args.results_file:
                write_rows(args.results_file, rows, args.results_format)
        if args.plot:
            plot(rows, args, device)
    except UserError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 2
    return 0


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
    draw_lines(lines, swept, axis, panels, args.plot, f"{what} on {device.type}, {args.precision}{note}")
    print(f"picture: {args.plot}")
