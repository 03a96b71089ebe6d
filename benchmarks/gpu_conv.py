"""Check and time the causal convolution with its SiLU on a GPU: the kernel, PyTorch's operators, PyTorch compiled.

    python benchmarks/gpu_conv.py --output benchmarks/results

At the shapes of Vim-S and LocalVim-S, batch 128, in bfloat16, two and four routes over shared tokens. The floor: tokens
read once, every step written once, over a copy's bandwidth.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from gpu_measure import Results, copy_bandwidth, environment, exact_products, milliseconds
from scan_shapes import MODEL_SHAPES, ScanShape

from visionssm.ops import causal_conv1d

COLUMNS = ["shape", "what", "forward_ms", "of_floor", "training_ms", "eager_training_ms", "error", "failed"]
ALLOWED = 1e-2


@contextmanager
def backend(name: str) -> Iterator[None]:
    before = os.environ.get("VISIONSSM_BACKEND")
    os.environ["VISIONSSM_BACKEND"] = name
    try:
        yield
    finally:
        os.environ.pop("VISIONSSM_BACKEND")
        if before is not None:
            os.environ["VISIONSSM_BACKEND"] = before


def run(shape: ScanShape, batch: int, results: Results, bandwidth: float) -> None:
    order = shape.order("cuda")
    routes, steps = order.shape
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(batch, shape.tokens, 1, shape.channels, generator=g, device="cuda").bfloat16().requires_grad_()
    weight = torch.randn(routes, shape.channels, 4, generator=g, device="cuda", requires_grad=True)
    bias = torch.randn(routes, shape.channels, generator=g, device="cuda", requires_grad=True)
    leaves = [x, weight, bias]

    def call():
        return causal_conv1d(x, weight, bias, order, activation="silu")

    grad = torch.randn_like(call())
    jobs = {"kernel": ("triton", call), "PyTorch's operators": ("portable", call)}
    jobs["PyTorch's operators, compiled"] = "portable", torch.compile(call)
    floor = 2 * (x.numel() + batch * steps * routes * shape.channels) / bandwidth * 1e3
    for what, (name, function) in jobs.items():
        with results.row(shape=shape.name, what=what) as row, backend(name):

            def training(function=function):
                return torch.autograd.grad(function(), leaves, grad)

            if what == "kernel":
                row["error"] = error(training(), leaves, order, grad)
            forward, backward = milliseconds(torch.no_grad()(function)), milliseconds(training)
            row |= {"forward_ms": forward.graph, "training_ms": backward.graph, "eager_training_ms": backward.eager}
            row["of_floor"] = floor / (forward.graph or forward.eager)


def error(found, leaves, order, grad) -> float:
    """Largest relative error of the gradients against PyTorch's operators in float32."""
    with backend("portable"), exact_products():
        single = [t.detach().float().requires_grad_() for t in leaves]
        expected = torch.autograd.grad(causal_conv1d(*single, order, activation="silu"), single, grad.float())
    worst = max(((a.float() - e).norm() / e.norm()).item() for a, e in zip(found, expected, strict=True))
    if not worst <= ALLOWED:
        raise ValueError(f"relative error {worst:.2g}, allowed {ALLOWED}")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, help="instead of each shape's own")
    parser.add_argument("--output", type=Path, help="folder for gpu_conv.json and gpu_conv.md")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_conv.py needs a CUDA GPU")
    bandwidth = copy_bandwidth()
    env = environment() | {"copy_bandwidth_tb_per_s": round(bandwidth / 1e12, 3)}
    results = Results(args.output, "gpu_conv", "The causal convolution on a GPU", env, COLUMNS)
    for shape in MODEL_SHAPES:
        if shape.name in ("Vim-S", "LocalVim-S"):
            run(shape, args.batch or shape.batch, results, bandwidth)
    if results.failures:
        sys.exit("FAILED\n" + "\n".join(results.failures))


if __name__ == "__main__":
    main()
