"""FLOP formulas of the scan for torch.utils.flop_counter."""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import registration  # noqa: F401  defines the operators that get a formula
from .contract import Scan


def selective_scan_flops(b: int, T: int, k: int, d: int, N: int, R: int = 0) -> int:
    """2 (9 b T k d N + b T k d), the field's count since VMamba, and 2 b T k d R for a delta expanded from rank R."""
    return 2 * (9 * b * T * k * d * N + b * T * k * d * (1 + R))


def scan_sizes(*shapes) -> tuple[int, int, int, int, int, int]:
    """b, T, k, d, N and R (0 without a low-rank step size) of a call, given its arguments with shapes for tensors."""
    scan: Any = Scan._make(shapes[: len(Scan._fields)])  # shapes, where a scan has tensors
    b, (d, n) = scan.u[0], scan.A[1:]
    if scan.order is not None:
        k, t = scan.order
    else:
        t, axes = scan.num_tokens, dict(u=2, delta=2, B=2, C=2, A=0, D=0, delta_bias=0, dt_weight=0, initial_state=1)
        k = max(getattr(scan, name)[axis] for name, axis in axes.items() if getattr(scan, name) is not None)
    return b, t, k, d, n, 0 if scan.dt_weight is None else scan.dt_weight[2]


def count_shapes(*shapes) -> int:
    """FLOPs of a call of the operator, given its arguments with shapes in the place of tensors."""
    return selective_scan_flops(*scan_sizes(*shapes))


@register_flop_formula(torch.ops.visionssm.selective_scan)
def _forward_flops(*args, out_shape=None, **kwargs) -> int:
    return count_shapes(*args)


@register_flop_formula(torch.ops.visionssm.selective_scan_backward)
def _backward_flops(grad, grad_last, states, *args, out_shape=None, **kwargs) -> int:
    return 2 * count_shapes(*args)
