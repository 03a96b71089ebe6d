"""Time and memory of the scans on a grid, on a CPU: native, portable and the definition cell by cell.

    python benchmarks/cpu_grid_scans.py [--threads 1] [--output benchmarks/results/cpu_grid_scans.md]

The definitions work on all images, channels and states at once in each cell. Seconds of processor time, the best of
several calls; peak extra memory as in cpu_scan.py, in tensors of cells x channels x states.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch
from cpu_scan import _status

from visionssm.ops import spanning_tree, tree_scan, wavefront_scan

# batch, height = width, channels, states
SHAPES = {
    "wavefront_scan, Mamba2D-T stage 1": (1, 56, 64, 16),
    "wavefront_scan, Mamba2D-T stage 2": (1, 28, 128, 16),
    "wavefront_scan, Mamba2D-N stage 1": (1, 56, 32, 16),
    "tree_scan, GrootV-T stage 1": (1, 56, 160, 1),
    "tree_scan, GrootV-T stage 3": (1, 14, 640, 1),
}
GOAL = 5  # how often the portable path is as fast as the definition at 56 x 56, and the native one as the portable
BACKENDS = {"wavefront_scan": ("native", "portable", "reference"), "tree_scan": ("portable", "reference")}


def make_call(name: str):
    """The operator on random inputs, a function of the backend, and the leaves of its gradients."""
    b, size, d, n = SHAPES[name]
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=g)

    if name.startswith("tree"):
        parent = spanning_tree(normal(b, size - 1, size), normal(b, size, size - 1))
        leaves = [normal(b, size * size, d), normal(b, size * size, d).sigmoid()]
        return lambda backend: tree_scan(*leaves, parent, backend=backend), leaves
    steps = (normal(b, size, size, d).sub(4).exp() for _ in range(2))
    rates = (-torch.arange(1.0, n + 1).expand(d, n).contiguous() for _ in range(2))
    leaves = [normal(b, size, size, d), *steps, *rates, *(normal(b, size, size, n) for _ in range(3)), torch.ones(d)]
    return lambda backend: wavefront_scan(*leaves, backend=backend), leaves


def best_time(function, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times[1:] or times)


def backends_of(name: str) -> tuple[str, ...]:
    return BACKENDS[name.split(",")[0]]


def measure(name: str, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    call, leaves = make_call(name)
    result = {}
    for backend in backends_of(name):
        torch.testing.assert_close(call(backend), call("reference"), rtol=1e-4, atol=1e-4)
        repeats = 1 if backend == "reference" else 10
        for leaf in leaves:
            leaf.requires_grad_(False)
        result[backend] = best_time(lambda: call(backend), repeats)  # noqa: B023  called at once
        for leaf in leaves:
            leaf.requires_grad_()
        result[backend + "_both"] = best_time(lambda: torch.autograd.grad(call(backend).sum(), leaves), repeats)  # noqa: B023
        for leaf in leaves:
            leaf.requires_grad_(False)
    return result


def peak_memory(name: str, backend: str, gradients: bool) -> float:
    torch.set_num_threads(1)
    call, leaves = make_call(name)
    for leaf in leaves:
        leaf.requires_grad_(gradients)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmHWM")
    y = call(backend)
    if gradients:
        torch.autograd.grad(y.sum(), leaves)
    b, size, d, n = SHAPES[name]
    return (_status("VmHWM") - before) / (b * size * size * d * n * 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cpu_grid_scans.md"))
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        name, backend, gradients = args.memory_of
        print(json.dumps(peak_memory(name, backend, gradients == "True")))
        return

    lines = [
        "# The scans on a grid, on a CPU",
        "",
        f"{date.today()}, {platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {args.threads} thread; `python benchmarks/cpu_grid_scans.py`. Milliseconds of "
        "processor time; peak extra memory in tensors of cells x channels x states (float32).",
        "",
        "| operator (batch, cells, channels, states) | path | native | portable | definition | portable / native "
        "| definition / portable | memory native | portable | definition |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    missed = []
    for name, (b, size, d, n) in SHAPES.items():
        seconds = measure(name, args.threads)
        for path, suffix in (("forward", ""), ("forward + backward", "_both")):
            cells = []
            for unit in ("time", "ratio", "memory"):
                for i, backend in enumerate(order := ("native", "portable", "reference")):
                    if backend not in backends_of(name):
                        cells.append("-")
                    elif unit == "time":
                        cells.append(f"{seconds[backend + suffix] * 1e3:.1f}")
                    elif unit == "ratio" and backend != "reference":
                        ratio = seconds[order[i + 1] + suffix] / seconds[backend + suffix]
                        cells.append(f"{ratio:.1f}")
                        if name.startswith("wavefront") and size == 56 and ratio < GOAL:
                            missed.append(f"{backend}, {path} of {name}")
                    elif unit == "memory":
                        command = [sys.executable, __file__, "--memory-of", name, backend, str(bool(suffix))]
                        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                        cells.append(f"{json.loads(output):.1f}")
            lines.append(f"| {name} ({b}, {size} x {size}, {d}, {n}) | {path} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("\n".join(lines) + "\n")
    print(f"written to {args.output}")
    if missed:
        sys.exit(f"less than {GOAL} times as fast as the next slower one: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
