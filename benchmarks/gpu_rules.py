"""Time the scan on a GPU under other rules than the kernels' own: which constants of config.py to keep.

    python benchmarks/gpu_rules.py --output benchmarks/results [--shapes "VMamba-T stage"]

The scan alone, in bfloat16 with the output in float32, forward and forward + backward, replayed from CUDA graphs: warps
wanted per multiprocessor, channels of a program, rows fetched ahead or not. Beside each: what `gpu_predict.py` says of
the same choice is printed by its options --warps and --walks.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_measure import Results, environment, milliseconds
from gpu_scan import our_scan, training_call
from scan_shapes import MODEL_SHAPES, make_inputs

from visionssm.ops.selective_scan.triton import config

COLUMNS = ["shape", "batch", "choice", "forward_ms", "training_ms", "failed"]
SHAPES = ("VMamba-T stage 1", "VMamba-T stage 2", "VMamba-T detection stage 1", "Vim-S")


@contextmanager
def setting(**values: Any) -> Iterator[None]:
    """Names of the kernels' config.py set for a time."""
    before = {name: getattr(config, name) for name in values}
    try:
        for name, value in values.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def choices() -> dict[str, dict[str, Any]]:
    forward, backward = config.forward_blocks, config.backward_blocks
    found: dict[str, dict[str, Any]] = {"rule": {}}
    found |= {f"{n} warps an SM": {"WARPS_PER_SM": n} for n in (4, 8, 12, 24)}
    for n in (32, 64, 128):
        found[f"forward {n} channels"] = {"forward_blocks": lambda *a, n=n: forward(*a)._replace(channels=n)}
    for n in (32, 64):
        found[f"backward {n} channels"] = {"backward_blocks": lambda *a, n=n: backward(*a)._replace(channels=n)}
    found |= {f"fetched ahead {said}": {"prefetch": lambda *_, said=said: said} for said in (False, True)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), help="names of shapes")
    parser.add_argument("--batch", type=int, help="instead of each shape's own")
    parser.add_argument("--output", type=Path, help="folder for gpu_rules.json and gpu_rules.md")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_rules.py needs a CUDA GPU; without one, benchmarks/gpu_predict.py predicts")
    results = Results(args.output, "gpu_rules", "The scan under other rules", environment(), COLUMNS)
    for shape in MODEL_SHAPES:
        if shape.name not in args.shapes:
            continue
        inputs = make_inputs(shape, torch.bfloat16, "cuda", args.batch)
        function, leaves = our_scan(inputs, "triton", torch.float32)
        for choice, values in choices().items():
            with (
                results.row(shape=shape.name, batch=args.batch or shape.batch, choice=choice) as row,
                setting(**values),
            ):
                row["forward_ms"] = milliseconds(torch.no_grad()(function), 10).graph
                row["training_ms"] = milliseconds(training_call(function, leaves), 10).graph
    if results.failures:
        sys.exit("FAILED\n" + "\n".join(results.failures))


if __name__ == "__main__":
    main()
