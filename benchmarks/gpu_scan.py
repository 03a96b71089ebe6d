"""Check and time the scan on a GPU, against its floors and its peers.

    python benchmarks/gpu_scan.py --output benchmarks/results [--shapes VMamba-T] [--vmamba-repo PATH]

For every shape: the time of the scan alone, forward and forward + backward, and of the work from the depthwise
convolution's output to the merged scan output (projection of dt, B and C included; "mixer"), with the output in the
inputs' dtype and in float32, as the models ask for it. Times are those of replayed CUDA graphs, the GPU's work alone;
"eager" beside them has the host's work in it. What is timed is also what is checked: two images of the timed batch are
compared with float64, and so are all gradients of a batch of two planned like the timed one.

Two floors stand beside each time: the bytes that have to move over the bandwidth that a copy reaches here, and the
exponentials and logarithms over the rate that a kernel of exponentials reaches here. A row that fails says so, and the
next follows; the exit status tells.

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
from gpu_measure import Results, copy_bandwidth, environment, exact_products, exponential_rate, milliseconds, peak_bytes
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
    "eager_forward_ms",
    "eager_training_ms",
    "bytes_floor_ms",
    "exponentials_floor_ms",
    "extra_mib",
    "error",
    "failed",
]
ALLOWED = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # relative error of a dtype


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


def floors(
    shape: ScanShape, batch: int, dtype: torch.dtype, out: torch.dtype, mixer: bool, bandwidth: float, rate: float
) -> tuple[float, float]:
    """Milliseconds that the forward cannot go below: each byte once, and the special functions of each step.

    u (the mixer's projection reads it too), rows of delta, B and C, and the output; of each step N decays and the
    softplus, which takes an exponential and a logarithm, in float32 an exponential and a polynomial.
    """
    order = shape.order()
    K, T = order.shape
    rows = T if shape.by_step else shape.tokens
    inner = batch * shape.tokens * shape.channels
    projections = batch * rows * K * ((shape.rank or shape.channels) + 2 * shape.states)
    inputs = inner * (K if shape.own_input else 1)
    bytes_moved = dtype.itemsize * (inputs + projections) + out.itemsize * inner
    if mixer:  # rows are written, then read; u is read twice
        bytes_moved += dtype.itemsize * (inputs + projections)
    special = batch * T * K * shape.channels * (shape.states + (1 if dtype == torch.float32 else 2))
    return bytes_moved / bandwidth * 1e3, special / rate * 1e3


def training_call(function, leaves: list[Tensor]):
    """A call of forward and backward."""
    weight = torch.randn_like(function())

    def call():
        return torch.autograd.grad(function(), leaves, weight)

    return call


def measure(row: dict, function, leaves: list[Tensor]) -> None:
    """Times and memory of a function, forward and with the gradients of its leaves."""
    training = training_call(function, leaves)
    row["extra_mib"] = peak_bytes(training) / 2**20
    forward = milliseconds(torch.no_grad()(function))
    backward = milliseconds(training)
    row |= {
        "forward_ms": forward.graph,
        "training_ms": backward.graph,
        "eager_forward_ms": forward.eager,
        "eager_training_ms": backward.eager,
    }
    if forward.note or backward.note:
        row["what"] += f" ({forward.note or backward.note})"


def our_scan(inputs: dict, backend: str, out: torch.dtype | None = None):
    leaves = {n: inputs[n].detach().requires_grad_() for n in LEAVES if n in inputs}
    rest = {n: x for n, x in inputs.items() if n not in leaves}
    return lambda: selective_scan(**leaves, **rest, backend=backend, out_dtype=out), list(leaves.values())


def our_mixer(shape: ScanShape, inputs: dict, out: torch.dtype):
    """From the depthwise convolution's output: projection of dt, B and C of all routes, scan, merge."""
    K, rank, n = inputs["order"].shape[0], shape.rank, shape.states
    width = rank + 2 * n
    u = inputs["u"].detach().requires_grad_()
    weight = (torch.randn(K * width, shape.channels, device=u.device, dtype=u.dtype) * 0.1).requires_grad_()
    parameters = {name: inputs[name].detach().requires_grad_() for name in ("A", "D", "delta_bias", "dt_weight")}

    def function():
        delta, B, C = F.linear(u, weight).unflatten(-1, (K, width)).split([rank, n, n], -1)
        return selective_scan(u, delta, B=B, C=C, **parameters, order=inputs["order"], out_dtype=out, backend="triton")

    return function, [u, weight, *parameters.values()]


def mamba_ssm_scan(shape: ScanShape, inputs: dict, scan_only: bool):
    """The CUDA scan on (b, routes x channels, steps): reordered, expanded and merged by PyTorch unless `scan_only`."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    order = inputs["order"].long()
    dtype, batch = inputs["u"].dtype, inputs["u"].shape[0]
    (K, T), d = order.shape, shape.channels
    route = torch.arange(K, device="cuda")[:, None]
    inverse = order.argsort(1)
    u, rows_delta, B, C = (inputs[x].detach() for x in ("u", "delta", "B", "C"))
    A, D, bias = (inputs[x].detach().flatten(0, 1).requires_grad_() for x in ("A", "D", "delta_bias"))
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


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm().clamp(min=1e-300)).item()


def gradients(inputs: dict, backend: str, out: torch.dtype | None, double: bool = False) -> dict[str, Tensor]:
    """Output and gradients of a scan, by name."""
    leaves = {n: (inputs[n].double() if double else inputs[n]).detach().requires_grad_() for n in LEAVES if n in inputs}
    rest = {n: x for n, x in inputs.items() if n not in leaves}
    y = selective_scan(**leaves, **rest, backend=backend, out_dtype=out)
    weight = torch.randn(y.shape[1:], generator=torch.Generator().manual_seed(0)).to(y).expand_as(y)
    return {"out": y.detach()} | dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), weight), strict=True))


@contextmanager
def planned_for(times: int):
    """Plan launches as for a batch so many times as large."""
    segments, walk, prefetch = config.segments, config._walk, config.prefetch
    try:
        config.segments = lambda programs, *rest: segments(programs * times, *rest)
        config._walk = lambda parts, programs, *rest: walk(parts, programs * times, *rest)
        config.prefetch = lambda states, blocks, programs, *rest: prefetch(states, blocks, programs * times, *rest)
        yield
    finally:
        config.segments, config._walk, config.prefetch = segments, walk, prefetch


def error(inputs: dict, out: torch.dtype) -> float:
    """Largest relative error against float64: of two images of this batch, and of all gradients of those two alone."""
    batch = inputs["u"].shape[0]
    two = [0, batch - 1]
    images = ("u", "delta", "B", "C")
    cut = {n: x[two] if n in images else x for n, x in inputs.items()}
    expected = gradients(cut, "portable", None, double=True)
    whole = gradients(inputs, "triton", out)
    errors = {f"{n} of the batch": relative_error(whole[n][two], expected[n]) for n in ("out", *images)}
    del whole
    with planned_for(max(1, batch // 2)):
        errors |= {n: relative_error(x, expected[n]) for n, x in gradients(cut, "triton", out).items()}
    name, worst = max(errors.items(), key=lambda item: item[1])
    allowed = ALLOWED[inputs["u"].dtype]
    if not worst <= allowed:
        raise ValueError(f"relative error of {name} {worst:.2g}, allowed {allowed}")
    return worst


def run(shape: ScanShape, dtype, args, results: Results, bandwidth: float, rate: float) -> None:
    batch = args.batch or shape.batch
    inputs = make_inputs(shape, dtype, "cuda", batch)
    single = torch.float32
    jobs = {"scan": lambda: our_scan(inputs, "triton"), "scan to float32": lambda: our_scan(inputs, "triton", single)}
    forced = {}
    if args.routes:
        total = shape.order().shape[0]
        for n in (n for n in range(1, total + 1) if total % n == 0):
            what = f"scan to float32, {n} routes a program"
            jobs[what], forced[what] = jobs["scan to float32"], n
    if shape.rank and not shape.own_input and not shape.by_step:
        jobs["mixer"] = lambda: our_mixer(shape, inputs, dtype)
        jobs["mixer to float32"] = lambda: our_mixer(shape, inputs, single)
    if args.portable:
        jobs["scan, portable PyTorch"] = lambda: our_scan(inputs, "portable")
    if args.mamba_ssm and not shape.u_by_step:
        jobs["scan, mamba_ssm with reordering"] = lambda: mamba_ssm_scan(shape, inputs, False)
        jobs["scan, mamba_ssm alone"] = lambda: mamba_ssm_scan(shape, inputs, True)
    if args.vmamba_repo and shape.scan == "cross" and not shape.own_input:
        jobs["mixer + norm, VMamba's own"] = lambda: vmamba_core(shape, dtype, batch, args.vmamba_repo)
    for what, make in jobs.items():
        out = single if "float32" in what else dtype
        bytes_ms, special_ms = floors(shape, batch, dtype, out, "mixer" in what, bandwidth, rate)
        with (
            results.row(
                shape=shape.name, batch=batch, what=what, bytes_floor_ms=bytes_ms, exponentials_floor_ms=special_ms
            ) as row,
            routes_per_program(forced.get(what)),
        ):
            if what.startswith("scan") and "," not in what or what in forced:
                with exact_products():
                    row["error"] = error(inputs, out)
            measure(row, *make())
            row["of_floor"] = max(bytes_ms, special_ms) / (row["forward_ms"] or row["eager_forward_ms"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=[""], help="parts of shapes' names (default: all)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--batch", type=int, help="instead of each shape's own")
    parser.add_argument("--vmamba-repo", type=Path, help="a checkout of VMamba with its scan extension installed")
    parser.add_argument("--routes", action="store_true", help="also time every number of routes per program")
    parser.add_argument("--no-portable", dest="portable", action="store_false", help="leave the portable peer out")
    parser.add_argument("--name", default="gpu_scan", help="name of the files in the folder")
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
    results = Results(args.output, args.name, "The scan on a GPU", env, COLUMNS)
    for shape in MODEL_SHAPES:
        if any(part in shape.name for part in args.shapes):
            run(shape, dtype, args, results, bandwidth, rate)
    if results.failures:
        sys.exit("FAILED\n" + "\n".join(results.failures))


if __name__ == "__main__":
    main()
