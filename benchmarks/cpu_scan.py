"""Time and memory of the portable scan on a CPU, as ratios within one run.

    python benchmarks/cpu_scan.py [--threads 1 2] [--repeats 5] [--output benchmarks/results/cpu_scan.md]

Compared are `torch.cumsum` over a tensor of the same (steps, routes x channels), the scan written as a loop over steps
(all routes and channels at once), and autograd through that loop. Medians; the variants take turns, so that a
disturbance of the machine hits all of them. Peak extra memory is the growth of the process' resident set over a call in
a fresh process, in tensors of steps x routes x channels x states.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from scan_shapes import CPU_SHAPES, make_inputs
from timing import seconds_in_turn

from visionssm.ops import selective_scan

SHAPES = {shape.name: shape for shape in CPU_SHAPES}


def step_loop(u, delta, A, B, C, D, delta_bias, order):
    """The recurrence, one step of all routes and channels per iteration."""
    b, L, d = *u.shape[:2], u.shape[-1]
    k = order.shape[0]
    route = torch.arange(k)[:, None]
    table = order.long()
    u = (u[:, table] if u.ndim == 3 else u[:, table, route]).transpose(1, 2)
    delta = F.softplus(delta[:, table, route].transpose(1, 2) + delta_bias)
    B, C = B[:, table, route].transpose(1, 2), C[:, table, route].transpose(1, 2)
    h = u.new_zeros(b, k, d, A.shape[-1])
    ys = []
    # unbind, not indexing: its backward does not write a whole sequence of zeros for every step
    for u_t, delta_t, B_t, C_t in zip(u.unbind(1), delta.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(delta_t[..., None] * A) * h + (delta_t * u_t)[..., None] * B_t[:, :, None]
        ys.append((h * C_t[:, :, None]).sum(-1) + D * u_t)
    y = torch.stack(ys, 2)
    return u.new_zeros(b, L, d).index_add(1, table.flatten(), y.flatten(1, 2))


def measure(name: str, threads: int, repeats: int) -> dict:
    torch.set_num_threads(threads)
    *inputs, order = make_inputs(SHAPES[name], torch.float32).values()
    leaves = [x.clone().requires_grad_() for x in inputs]
    k, d = inputs[1].shape[2:]
    flat = torch.rand(order.shape[1], k * d)

    def forward():
        with torch.no_grad():
            return selective_scan(*inputs, order=order, backend="portable")

    def loop():
        with torch.no_grad():
            return step_loop(*inputs, order)

    torch.testing.assert_close(forward(), loop(), rtol=1e-4, atol=1e-4)
    functions = {
        "cumsum": lambda: torch.cumsum(flat, 0),
        "forward": forward,
        "loop": loop,
        "both": lambda: torch.autograd.grad(selective_scan(*leaves, order=order, backend="portable").sum(), leaves),
        "loop_both": lambda: torch.autograd.grad(step_loop(*leaves, order).sum(), leaves),
    }
    seconds = seconds_in_turn(functions, threads, repeats)
    return dict(shape=name, threads=threads, **{key: value * 1e3 for key, value in seconds.items()})


def peak_memory(name: str, gradients: bool) -> float:
    """Growth of the resident set over one call, in tensors of steps x routes x channels x states."""
    torch.set_num_threads(1)
    *inputs, order = make_inputs(SHAPES[name], torch.float32).values()
    small = [x[:, :8] if i in (0, 1, 3, 4) else x for i, x in enumerate(inputs)]
    selective_scan(*small, backend="portable")  # load the libraries first
    if gradients:
        inputs = [x.requires_grad_() for x in inputs]
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmHWM")
    y = selective_scan(*inputs, order=order, backend="portable")
    if gradients:
        torch.autograd.grad(y.sum(), inputs)
    k, d, n = inputs[2].shape
    return (_status("VmHWM") - before) / (inputs[0].shape[0] * order.shape[1] * k * d * n * 4)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cpu_scan.md"))
    parser.add_argument("--memory-of", choices=list(SHAPES), help=argparse.SUPPRESS)
    parser.add_argument("--gradients", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(peak_memory(args.memory_of, args.gradients)))
        return

    lines = [
        "# The portable scan on a CPU",
        "",
        f"{date.today()}, {platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}; `python benchmarks/cpu_scan.py`. Milliseconds, medians.",
        "",
        "| shape (batch, tokens, routes x channels, states) | threads | cumsum | forward | forward / cumsum "
        "| step loop | loop / forward | forward + backward | autograd through the loop | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in SHAPES:
        for threads in args.threads:
            r = measure(name, threads, args.repeats)
            shape = SHAPES[name]
            k = shape.order().shape[0]
            lines.append(
                f"| {name} ({shape.batch}, {shape.tokens}, {k} x {shape.channels}, {shape.states}) | {threads} "
                f"| {r['cumsum']:.2f} | {r['forward']:.2f} | {r['forward'] / r['cumsum']:.2f} | {r['loop']:.1f} "
                f"| {r['loop'] / r['forward']:.1f} | {r['both']:.1f} | {r['loop_both']:.1f} "
                f"| {r['loop_both'] / r['both']:.1f} |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        "Peak extra memory of one call, in tensors of steps x routes x channels x states (float32):",
        "",
        "| shape | forward | forward + backward |",
        "|---|---|---|",
    ]
    for name in SHAPES:
        peaks = []
        for extra in ([], ["--gradients"]):
            command = [sys.executable, __file__, "--memory-of", name, *extra]
            peaks.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        lines.append(f"| {name} | {peaks[0]:.2f} | {peaks[1]:.2f} |")
        print(lines[-1], flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("\n".join(lines) + "\n")
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
