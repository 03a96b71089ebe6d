"""Check and time the scan on a GPU, against its floors and its peers.

    python benchmarks/gpu_scan.py --output benchmarks/results [--shapes VMamba-T] [--vmamba-repo PATH]

For every shape: the error against float64, the time of the scan alone, forward and forward + backward, and of the work
from the depthwise convolution's output to the merged scan output (projection of dt, B and C included; "mixer"). Two
floors stand beside each time: the bytes that have to move over the bandwidth that a copy reaches here, and the
exponentials and logarithms over the rate that a kernel of exponentials reaches here.

With --routes every number of routes that one program may walk is timed beside the rule's choice
(`routes_per_program` in the kernels' config.py).

Peers, timed in the same run: this package's portable implementation; the CUDA scan of `mamba_ssm` if it can be
imported, on routes reordered and steps expanded by PyTorch as its users do; with --vmamba-repo, a checkout of VMamba
whose scan extension is installed, its SS2D core of forward type v05_noz, output norm included.
"""

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_measure import copy_bandwidth, environment, exponential_rate, markdown, milliseconds, peak_bytes, write_results
from scan_shapes import MODEL_SHAPES, ScanShape, make_inputs
from torch import Tensor

from visionssm.ops import selective_scan
from visionssm.ops.selective_scan.triton import config

LEAVES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "dt_weight")
COLUMNS = [
    "shape",
    "batch",
    "what",
    "forward_ms",
    "of_floor",
    "training_ms",
    "bytes_floor_ms",
    "exponentials_floor_ms",
    "extra_mib",
    "error",
]


@contextmanager
def routes_per_program(routes: int | None):
    """Let every program walk as many routes, whatever the rule says."""
    rule = config.routes_per_program
    if routes is not None:
        config.routes_per_program = lambda *_: routes
    try:
        yield
    finally:
        config.routes_per_program = rule


def floors(shape: ScanShape, batch: int, element: int, bandwidth: float, rate: float) -> tuple[float, float]:
    """Milliseconds that the forward cannot go below: bytes of u, rows and output once; 3 special functions per step."""
    order = shape.order()
    K, T = order.shape
    rows = T if shape.by_step else shape.tokens
    inner = batch * shape.tokens * shape.channels
    bytes_moved = element * (
        inner * (K if shape.own_input else 1)
        + inner
        + batch * rows * K * ((shape.rank or shape.channels) + 2 * shape.states)
    )
    special = batch * T * K * shape.channels * (shape.states + 2)
    return bytes_moved / bandwidth * 1e3, special / rate * 1e3


def training_call(function, leaves: list[Tensor]):
    """A call of forward and backward."""
    weight = torch.randn_like(function())

    def call():
        return torch.autograd.grad(function(), leaves, weight)

    return call


def measure(what: str, function, leaves: list[Tensor]) -> dict:
    """Times and memory of a function, forward and with the gradients of its leaves."""
    training = training_call(function, leaves)
    return {
        "what": what,
        "forward_ms": milliseconds(torch.no_grad()(function)),
        "training_ms": milliseconds(training),
        "extra_mib": peak_bytes(training) / 2**20,
    }


def our_scan(shape: ScanShape, dtype, batch: int, backend: str):
    inputs = make_inputs(shape, dtype, "cuda", batch)
    leaves = {n: inputs[n].requires_grad_() for n in LEAVES if n in inputs}
    rest = {n: x for n, x in inputs.items() if n not in leaves}
    return lambda: selective_scan(**leaves, **rest, backend=backend), list(leaves.values())


def our_mixer(shape: ScanShape, dtype, batch: int):
    """From the depthwise convolution's output: projection of dt, B and C of all routes, scan, merge."""
    inputs = make_inputs(shape, dtype, "cuda", batch)
    K, rank, n = inputs["order"].shape[0], shape.rank, shape.states
    width = rank + 2 * n
    u = inputs["u"].requires_grad_()
    weight = (torch.randn(K * width, shape.channels, device="cuda", dtype=dtype) * 0.1).requires_grad_()
    parameters = {name: inputs[name].requires_grad_() for name in ("A", "D", "delta_bias", "dt_weight")}

    def function():
        delta, B, C = F.linear(u, weight).unflatten(-1, (K, width)).split([rank, n, n], -1)
        return selective_scan(
            u,
            delta,
            parameters["A"],
            B,
            C,
            parameters["D"],
            parameters["delta_bias"],
            dt_weight=parameters["dt_weight"],
            order=inputs["order"],
        )

    return function, [u, weight, *parameters.values()]


def mamba_ssm_scan(shape: ScanShape, dtype, batch: int, scan_only: bool):
    """The CUDA scan on (b, routes x channels, steps): reordered, expanded and merged by PyTorch unless `scan_only`."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    inputs = make_inputs(shape, dtype, "cuda", batch)
    order = inputs["order"].long()
    (K, T), d = order.shape, shape.channels
    route = torch.arange(K, device="cuda")[:, None]
    inverse = order.argsort(1)
    u, rows_delta, B, C = (inputs[x] for x in ("u", "delta", "B", "C"))
    A, D, bias = (inputs[x].flatten(0, 1).requires_grad_() for x in ("A", "D", "delta_bias"))
    weight = inputs.get("dt_weight")

    def by_route(x: Tensor) -> Tensor:  # (b, S, K, c) -> (b, K, c, T)
        if x.ndim == 3:
            return x[:, order].permute(0, 1, 3, 2)
        return (x.transpose(1, 2) if shape.by_step else x[:, order, route]).permute(0, 1, 3, 2)

    def prepare():
        delta = by_route(rows_delta)
        if weight is not None:
            delta = torch.einsum("bkrt,kdr->bkdt", delta, weight.to(dtype))
        return (
            by_route(u).reshape(batch, K * d, T),
            delta.reshape(batch, K * d, T),
            by_route(B).contiguous(),
            by_route(C).contiguous(),
        )

    def scan(x, delta, B, C):
        return selective_scan_fn(x, delta, A, B, C, D, None, bias, True)

    if scan_only:
        ready = [x.detach().requires_grad_() for x in prepare()]
        return lambda: scan(*ready), ready
    leaves = [x.requires_grad_() for x in (u, rows_delta, B, C)]

    def function():
        y = scan(*prepare()).view(batch, K, d, T)
        return y.gather(3, inverse[None, :, None].expand(batch, K, d, T)).sum(1).transpose(1, 2)

    return function, leaves


def vmamba_core(shape: ScanShape, dtype, batch: int, repository: Path):
    """Their SS2D from the convolution's output to the normalised merged output."""
    sys.path.insert(0, str(repository / "classification" / "models"))
    import vmamba

    module = vmamba.SS2D(
        d_model=shape.channels,
        d_state=shape.states,
        ssm_ratio=1.0,
        dt_rank=shape.rank,
        forward_type="v05_noz",
        channel_first=True,
    ).cuda()
    x = torch.randn(batch, shape.channels, shape.height, shape.width, device="cuda", dtype=dtype, requires_grad=True)

    def function():
        with torch.autocast("cuda", dtype):
            return module.forward_core(x)

    return function, [x, *(p for p in module.parameters() if p.requires_grad and _used(p, function))]


def _used(parameter, function) -> bool:
    return torch.autograd.grad(function().float().sum(), parameter, allow_unused=True)[0] is not None


def error(shape: ScanShape, dtype) -> float:
    """Relative error of output and gradients against float64, on a batch of two; raises above what the dtype allows."""
    inputs = make_inputs(shape, dtype, "cuda", batch=2)
    results = []
    for backend in ("triton", "portable"):
        leaves = {
            n: inputs[n].to(torch.float64 if backend == "portable" else inputs[n].dtype).detach().requires_grad_()
            for n in LEAVES
            if n in inputs
        }
        y = selective_scan(**leaves, **{n: x for n, x in inputs.items() if n not in leaves}, backend=backend)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).to(y)
        results.append([y.detach(), *torch.autograd.grad(y, list(leaves.values()), weight)])
    worst = max(((a.double() - e).norm() / e.norm()).item() for a, e in zip(*results, strict=True))
    allowed = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    if not worst <= allowed:
        sys.exit(f"{shape.name}: relative error {worst:.2g} in {dtype}, allowed {allowed}; nothing was timed")
    return worst


def run(shape: ScanShape, dtype, args, bandwidth: float, rate: float) -> list[dict]:
    batch = args.batch or shape.batch
    bytes_ms, special_ms = floors(shape, batch, dtype.itemsize, bandwidth, rate)
    jobs = {"scan": lambda: our_scan(shape, dtype, batch, "triton")}
    forced = {}
    if args.routes:
        total = shape.order().shape[0]
        for n in (n for n in range(1, total + 1) if total % n == 0):
            what = f"scan, {n} routes a program"
            jobs[what], forced[what] = jobs["scan"], n
    if shape.rank and not shape.own_input and not shape.by_step:
        jobs["mixer"] = lambda: our_mixer(shape, dtype, batch)
    if args.portable:
        jobs["scan, portable PyTorch"] = lambda: our_scan(shape, dtype, batch, "portable")
    if args.mamba_ssm and not shape.u_by_step:
        jobs["scan, mamba_ssm with reordering"] = lambda: mamba_ssm_scan(shape, dtype, batch, False)
        jobs["scan, mamba_ssm alone"] = lambda: mamba_ssm_scan(shape, dtype, batch, True)
    if args.vmamba_repo and shape.scan == "cross" and not shape.own_input:
        jobs["mixer + norm, VMamba's own"] = lambda: vmamba_core(shape, dtype, batch, args.vmamba_repo)
    results, relative = [], error(shape, dtype)
    for what, make in jobs.items():
        row = {"shape": shape.name, "batch": batch, "bytes_floor_ms": bytes_ms, "exponentials_floor_ms": special_ms}
        try:
            with routes_per_program(forced.get(what)):
                row |= measure(what, *make())
        except torch.OutOfMemoryError:
            row |= {"what": f"{what}: out of memory"}
        else:
            row["of_floor"] = max(bytes_ms, special_ms) / row["forward_ms"]
        results.append(row | ({"error": relative} if what == "scan" else {}))
        print(markdown(results[-1:], COLUMNS).splitlines()[-1], flush=True)
        torch.cuda.empty_cache()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=[""], help="parts of shapes' names (default: all)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--batch", type=int, help="instead of each shape's own")
    parser.add_argument("--vmamba-repo", type=Path, help="a checkout of VMamba with its scan extension installed")
    parser.add_argument("--routes", action="store_true", help="also time every number of routes per program")
    parser.add_argument("--no-portable", dest="portable", action="store_false", help="leave the portable peer out")
    parser.add_argument("--output", type=Path, help="folder for gpu_scan.json and gpu_scan.md")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_scan.py needs a CUDA GPU; without one, benchmarks/kernel_resources.py compiles the kernels")
    try:
        import mamba_ssm.ops.selective_scan_interface  # noqa: F401

        args.mamba_ssm = True
    except ImportError as reason:
        args.mamba_ssm = False
        print(f"mamba_ssm is left out: {reason}")
    dtype = getattr(torch, args.dtype)
    env, bandwidth, rate = environment(), copy_bandwidth(), exponential_rate()
    env |= {
        "dtype": args.dtype,
        "copy_bandwidth_tb_per_s": round(bandwidth / 1e12, 3),
        "exponentials_per_ns": round(rate / 1e9, 1),
    }
    print(env)
    print(markdown([], COLUMNS))
    results = [
        row
        for shape in MODEL_SHAPES
        if any(part in shape.name for part in args.shapes)
        for row in run(shape, dtype, args, bandwidth, rate)
    ]
    if args.output:
        write_results(args.output, "gpu_scan", "The scan on a GPU", env, results, COLUMNS)


if __name__ == "__main__":
    main()
