"""Time of whole models on a CPU, as ratios to a model of timm within one run.

    python benchmarks/cpu_models.py [MODEL ...] [--against convnext_tiny ...] [--batch 1 8] [--threads 1]
                                    [--repeats 5] [--output benchmarks/results/cpu_models.md]

Inference at each model's published input size, random weights. Medians; the models take turns, so that a
disturbance of the machine hits all of them. Ratios are to the first model of `--against`; the last column divides by
the ratio of multiply-adds too, so it tells how long one of them takes.
"""

import argparse
import os
import platform
import sys
from datetime import date
from functools import partial
from pathlib import Path

import timm
import torch
from timing import seconds_in_turn
from timm.models import get_pretrained_cfg

from visionssm.analysis.flops import count
from visionssm.files import write_text
from visionssm.models import list_kinds

AGAINST = ("convnext_tiny", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mambaout_tiny")


def smallest() -> list[str]:
    """The published variant with the fewest parameters of each kind."""

    def parameters(name: str) -> int:
        return sum(p.numel() for p in timm.create_model(name, device="meta").parameters())

    return [min(names, key=parameters) for names in list_kinds().values()]


def measure(names: list[str], batches: list[int], threads: list[int], repeats: int) -> list[str]:
    """Rows of a Markdown table."""
    models = {name: timm.create_model(name).eval() for name in names}
    costs = {name: count(timm.create_model(name, device="meta"), get_pretrained_cfg(name).input_size) for name in names}
    lines = [
        "| model | parameters | GMACs | threads | batch | ms per image | ratio | ratio per multiply-add |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for pinned in threads:
        torch.set_num_threads(pinned)
        for batch in batches:
            inputs = {name: torch.randn(batch, *get_pretrained_cfg(name).input_size) for name in names}
            with torch.inference_mode():
                calls = {name: partial(model, inputs[name]) for name, model in models.items()}
                times = seconds_in_turn(calls, pinned, repeats)
            base = names[0]
            for name in names:
                ratio = times[name] / times[base]
                cost = costs[name]
                per_mac = ratio * costs[base].multiply_adds / cost.multiply_adds
                lines.append(
                    f"| {name} | {cost.parameters / 1e6:.1f}M | {cost.multiply_adds / 1e9:.2f} | {pinned} | {batch} "
                    f"| {1e3 * times[name] / batch:.1f} | {ratio:.2f} | {per_mac:.2f} |"
                )
                print(lines[-1], flush=True)
    return lines


def write(path: Path, lines: list[str]) -> None:
    """Write a table atomically, with what it was measured on."""
    head = [
        "# Models on a CPU",
        "",
        f"Written by `python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}`".rstrip(" `") + "`"
        f" on {date.today()}: {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}.",
        "",
    ]
    write_text(path, "\n".join([*head, *lines, ""]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=smallest(), help="default: the smallest of each kind")
    parser.add_argument("--against", nargs="+", default=list(AGAINST), help="models of timm; ratios are to the first")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cpu_models.md"))
    args = parser.parse_args(argv)
    write(args.output, measure([*args.against, *args.models], args.batch, args.threads, args.repeats))
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
