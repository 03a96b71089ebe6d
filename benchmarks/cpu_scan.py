"""Time and memory of the scan on a CPU, native and portable, as ratios within one run.

    python benchmarks/cpu_scan.py [--threads 1 2] [--batch 1] [--repeats 5] [--instruction-set avx2]
                                  [--output benchmarks/results/cpu_scan.md]

Compared are `torch.cumsum` over a tensor of the same (steps, routes x channels); the scan written as a loop over steps
(all routes and channels at once), which is what transformers' Mamba does without its kernels; autograd through that
loop; and, if it is installed (`pip install mambapy`), the parallel scan of mamba.py. Medians; the variants take turns,
so that a disturbance of the machine hits all of them. Peak extra memory is the growth of the process' resident set over
a call in a fresh process, in tensors of steps x routes x channels x states.

    python benchmarks/cpu_scan.py --orders cross snake hilbert+hilbert_flip+zorder+zorder_flip [--threads 1]

compares scan orders instead, at VMamba-T's first two stages, as ratios to the first of them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import date
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from scan_shapes import CPU_SHAPES, VMAMBA_TINY, make_inputs
from timing import seconds_in_turn

from visionssm.files import write_text
from visionssm.ops import backend_unavailable, selective_scan
from visionssm.ops.native import loading
from visionssm.scans import num_routes

try:
    from mambapy.pscan import pscan
except ImportError:
    pscan = None

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


def parallel_scan(u, delta, A, B, C, D, delta_bias, order):
    """The same by mamba.py's function, which wants every decay and every input of a state in memory."""
    table, route = order.long(), torch.arange(order.shape[0])[:, None]
    x = u[:, table] if u.ndim == 3 else u[:, table, route]  # (b, k, T, d)
    delta = F.softplus(delta[:, table, route] + delta_bias[:, None])
    decay = torch.exp(delta[..., None] * A[:, None])
    inputs = (delta * x)[..., None] * B[:, table, route][..., None, :]
    h = pscan(decay.flatten(0, 1), inputs.flatten(0, 1)).unflatten(0, x.shape[:2])
    y = (h * C[:, table, route][..., None, :]).sum(-1) + D[:, None] * x
    return torch.zeros(x.shape[0], u.shape[1], x.shape[3]).index_add(1, table.flatten(), y.flatten(1, 2))


def measure(name: str, threads: int, batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds of each variant; a name ends in "+" where the backward is included."""
    torch.set_num_threads(threads)
    *inputs, order = make_inputs(SHAPES[name], torch.float32, batch=batch).values()
    leaves = [x.clone().requires_grad_() for x in inputs]
    k, d = order.shape[0], inputs[0].shape[-1]
    flat = torch.rand(order.shape[1], batch * k * d)
    scans = {"loop": lambda *x: step_loop(*x, order)}
    for backend in ("native", "portable"):
        scans[backend] = lambda *x, backend=backend: selective_scan(*x, order=order, backend=backend)
    if pscan is not None:
        scans["mambapy"] = lambda *x: parallel_scan(*x, order)
    calls = {"cumsum": lambda: torch.cumsum(flat, 0)}
    with torch.no_grad():
        expected = scans["loop"](*inputs)
    for key, scan in scans.items():

        def forward(scan=scan):
            with torch.no_grad():
                return scan(*inputs)

        torch.testing.assert_close(forward(), expected, rtol=1e-4, atol=1e-4)
        calls[key] = forward
        if key == "mambapy":
            continue  # its backward takes minutes
        calls[f"{key}+"] = lambda scan=scan: torch.autograd.grad(scan(*leaves).sum(), leaves)
    return {key: 1e3 * value for key, value in seconds_in_turn(calls, threads, repeats).items()}


def compare_orders(names: list[str], threads: int, repeats: int) -> list[str]:
    """Rows of a Markdown table: the native scan, forward and with backward, by scan order, taken in turn."""
    lines = ["| shape | scan order | forward | ratio | with backward | ratio |", "|---|---|---:|---:|---:|---:|"]
    for shape in VMAMBA_TINY[:2]:
        calls = {}
        for name in names:
            inputs = make_inputs(shape._replace(scan=name, batch=1, rank=0), torch.float32)
            order = inputs.pop("order")
            scan = partial(selective_scan, order=order, backend="native")
            leaves = [x.requires_grad_() for x in inputs.values()]

            def forward(scan=scan, leaves=leaves):
                with torch.no_grad():
                    scan(*leaves)

            calls[name] = forward
            calls[f"{name}+"] = lambda scan=scan, leaves=leaves: torch.autograd.grad(scan(*leaves).sum(), leaves)
        t = seconds_in_turn(calls, threads, repeats)
        for name in names:
            cells = [
                f"{1e3 * t[key]:.2f} | {t[key] / t[first]:.2f}"
                for key, first in ((name, names[0]), (f"{name}+", f"{names[0]}+"))
            ]
            lines.append(f"| {shape.name} | `{name}` | {' | '.join(cells)} |")
    return lines


def peak_memory(name: str, backend: str, gradients: bool) -> float:
    """Growth of the resident set over one call, in tensors of steps x routes x channels x states."""
    torch.set_num_threads(1)
    *inputs, order = make_inputs(SHAPES[name], torch.float32, batch=1).values()
    small = [x[:, :8] if i in (0, 1, 3, 4) else x for i, x in enumerate(inputs)]
    selective_scan(*small, backend=backend)  # load the libraries first
    if gradients:
        inputs = [x.requires_grad_() for x in inputs]
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmHWM")
    y = selective_scan(*inputs, order=order, backend=backend)
    if gradients:
        torch.autograd.grad(y.sum(), inputs)
    k, d, n = inputs[2].shape
    return (_status("VmHWM") - before) / (inputs[0].shape[0] * order.shape[1] * k * d * n * 4)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def ratio(times: dict[str, float], slow: str, fast: str, digits: int = 1) -> str:
    return f"{times[slow] / times[fast]:.{digits}f}" if slow in times else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--orders", nargs="+", metavar="NAME", help="compare scan orders of as many routes each")
    parser.add_argument("--instruction-set", choices=["avx512", "avx2", "baseline"], help="the best if not given")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cpu_scan.md"))
    parser.add_argument("--memory-of", nargs=2, metavar=("SHAPE", "BACKEND"), help=argparse.SUPPRESS)
    parser.add_argument("--gradients", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(peak_memory(*args.memory_of, args.gradients)))
        return
    reason = backend_unavailable("native", "cpu")
    if reason is not None:
        parser.error(f"the native backend cannot run: {reason}")
    loading.force_instruction_set(args.instruction_set)
    if args.orders:
        counts = {name: num_routes(name) for name in args.orders}
        if len(set(counts.values())) > 1:
            parser.error(f"--orders compares orders of as many routes each, found {counts}")
        print("\n".join(compare_orders(args.orders, args.threads[0], args.repeats)))
        return

    lines = [
        "# The scan on a CPU",
        "",
        f"{date.today()}, {platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"torch {torch.__version__}, native version {loading.instruction_set()}; "
        f"`python benchmarks/{' '.join([Path(__file__).name, *sys.argv[1:]])}`. Milliseconds, medians.",
        "",
        "| shape (batch, tokens, routes x channels, states) | threads | cumsum | native | native / cumsum "
        "| portable / native | loop / native | mamba.py / native | native, with backward | portable / native "
        "| loop / native |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, shape in SHAPES.items():
        for batch in args.batch:
            for threads in args.threads:
                t = measure(name, threads, batch, args.repeats)
                size = f"{batch}, {shape.tokens}, {shape.order().shape[0]} x {shape.channels}, {shape.states}"
                lines.append(
                    f"| {name} ({size}) | {threads} | {t['cumsum']:.2f} | {t['native']:.2f} "
                    f"| {ratio(t, 'native', 'cumsum', 2)} | {ratio(t, 'portable', 'native')} "
                    f"| {ratio(t, 'loop', 'native')} | {ratio(t, 'mambapy', 'native')} "
                    f"| {t['native+']:.2f} | {ratio(t, 'portable+', 'native+')} | {ratio(t, 'loop+', 'native+')} |"
                )
                print(lines[-1], flush=True)
    lines += [
        "",
        "Peak extra memory of one call, in tensors of steps x routes x channels x states (float32):",
        "",
        "| shape | native, forward | portable, forward | native, with backward | portable, with backward |",
        "|---|---|---|---|---|",
    ]
    for name in SHAPES:
        peaks = []
        for extra in ([], ["--gradients"]):
            for backend in ("native", "portable"):
                command = [sys.executable, __file__, "--memory-of", name, backend, *extra]
                peaks.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        lines.append(f"| {name} | {' | '.join(f'{peak:.2f}' for peak in peaks)} |")
        print(lines[-1], flush=True)
    write_text(args.output, "\n".join(lines) + "\n")
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
