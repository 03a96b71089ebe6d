"""One forward and backward scan of each kind, small, for tools that watch a program's accesses or its stalls.

compute-sanitizer --tool memcheck python benchmarks/gpu_touch.py
"""

import torch
from scan_shapes import MODEL_SHAPES, make_inputs

from visionssm.ops import causal_conv1d, selective_scan
from visionssm.ops.selective_scan.triton import config


def touch(shape, routes: int | None) -> None:
    inputs = make_inputs(shape, torch.bfloat16, "cuda", batch=1)
    leaves = {n: x.requires_grad_() for n, x in inputs.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    rule = config.routes_per_program
    try:
        if routes is not None:
            config.routes_per_program = lambda *_: routes
        y = selective_scan(**leaves, **{n: x for n, x in inputs.items() if n not in leaves}, backend="triton")
        y.float().square().sum().backward()
    finally:
        config.routes_per_program = rule


def main() -> None:
    shapes = {shape.name: shape for shape in MODEL_SHAPES}
    touch(shapes["VMamba-T stage 1"], None)
    touch(shapes["VMamba-T stage 4"], 4)
    touch(shapes["Vim-S"], None)
    touch(shapes["LocalVMamba-T stage 3, padded windows"], None)
    shape = shapes["Vim-S"]
    x = torch.randn(1, shape.tokens, 1, shape.channels, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(2, shape.channels, 4, device="cuda", requires_grad=True)
    causal_conv1d(x, weight, order=shape.order("cuda"), activation="silu").float().square().sum().backward()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
