"""Measure throughput, memory and multiply-adds of any timm models, side by side.

python tools/benchmark.py --model vmamba_tiny_s1l8 swin_tiny_patch4_window7_224 --bench both --results-file speed.csv
python tools/benchmark.py --model 'test_*' --img-size 32 64 --batch-size 8 --plot speed.png

Several values of --batch-size or --img-size sweep it. With --loader: how many images per second the loaders alone bring
from --data-dir, by workers, decoder and size, against what --model eats, and what to do.
"""

import itertools
from typing import Any

from ..engine.data.limits import DECODERS
from ._boundary import bounded
from ._inference_options import add_device_options, add_model_options
from ._parser import CommandParser, FormerChoice, command_parser
from ._vocabulary import add_options

# what timm's benchmark calls --precision, in the words of all other commands
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "amp": {"amp": True},
    "amp_bfloat16": {"amp": True, "amp_dtype": "bfloat16"},
    "float16": {"model_dtype": "float16"},
    "bfloat16": {"model_dtype": "bfloat16"},
}


def build_parser() -> CommandParser:
    """Return the parser of the benchmark command; flags keep timm's names and take lists to sweep."""
    parser = command_parser(
        __name__,
        __doc__,
        usage="visionssm benchmark (--model NAME [NAME ...] | --checkpoint FILE) [--bench both] [--plot PNG] [options]",
    )
    group = parser.add_argument_group("what is measured")
    add = group.add_argument
    add_options(group, "model", nargs="+", help="timm model names or patterns; a run's checkpoint says it itself")
    add("--bench", choices=("inference", "train", "both"), default="inference", help="what is measured")
    add_options(group, "batch-size", nargs="+", default=[64], help="images per step")
    add_options(group, "img-size", nargs="+")
    add("--num-warm-iter", type=int, default=5, metavar="N", help="steps before measuring")
    add("--num-bench-iter", type=int, default=20, metavar="N", help="steps measured")
    device = add_device_options(
        parser, "amp", "amp-dtype", "channels-last", "grad-checkpointing", "torchcompile", "torchcompile-mode"
    )
    device.add_argument(
        "--model-dtype", choices=("float16", "bfloat16"), help="precision of the weights too; float32 when not given"
    )
    device.add_argument("--precision", action=FormerChoice, meanings=PRECISIONS)
    device.add_argument("--threads", type=int, metavar="N", help="CPU threads; torch's choice when not given")
    results = parser.add_argument_group("results")
    add_options(results, "results-file", "results-format")
    add_options(results, "plot", help="picture of throughput, and of memory where it is known")
    group = parser.add_argument_group("loading")
    add_options(group, "data-dir", "dataset")
    add = group.add_argument
    add("--loader", action="store_true", help="measure reading, decoding and augmenting instead")
    add("--split", default="train", metavar="NAME", help="split")
    add_options(group, "workers", nargs="+", type=int, default=[0, 2, 4, 8], help="loader processes")
    add("--decoder", nargs="+", choices=DECODERS, default=["pillow"], help="what decodes images")
    add("--needed", type=float, metavar="X", help="images per second to compare with, instead of measuring --model")
    add("--loader-seconds", type=float, default=5.0, metavar="X", help="seconds measured of each setting")
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
    if args.loader:
        from ._loading import loading

        return loading(args, device)
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
