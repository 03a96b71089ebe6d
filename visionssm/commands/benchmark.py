"""Measure throughput, memory and multiply-adds of any timm models, side by side.

python tools/benchmark.py --model vmamba_tiny_s1l8 swin_tiny_patch4_window7_224 --bench both --results-file speed.csv
python tools/benchmark.py --model 'test_*' --img-size 32 64 --batch-size 8 --plot speed.png

Several values of --batch-size or --img-size sweep it.
"""

import itertools
from typing import Any

from ._boundary import bounded
from ._inference_options import add_model_options
from ._parser import CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of the benchmark command; flags keep timm's names and take lists to sweep."""
    parser = command_parser(
        __name__,
        __doc__,
        usage="visionssm benchmark (--model NAME [NAME ...] | --checkpoint FILE) [--bench both] [--plot PNG] [options]",
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


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the benchmark command and return its exit code."""
    args = build_parser().parse_args(argv)
    import torch

    from ..engine.data.processes import resolve_device
    from ..engine.reports.rows import write_rows
    from ._benchmarking import benchmark, model_names, plot

    rows: list[dict[str, Any]] = []
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
    return 0
