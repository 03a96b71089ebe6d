"""FLOP formulas of the scan for torch.utils.flop_counter."""

import torch
from torch.utils.flop_counter import register_flop_formula

from . import operator  # noqa: F401  defines the operators that get a formula


def selective_scan_flops(b: int, T: int, k: int, d: int, N: int, R: int = 0) -> int:
    """2 (9 b T k d N + b T k d), the field's count since VMamba, and 2 b T k d R for a delta expanded from rank R."""
    return 2 * (9 * b * T * k * d * N + b * T * k * d * (1 + R))


def _count(u, delta, A, B, C, D, delta_bias, dt_weight, order, num_tokens) -> int:
    b, (d, n) = u[0], A[1:]
    if order is not None:
        k, t = order
    else:
        t = num_tokens
        k = max(u[2], delta[2], A[0], B[2], *(x[i] for x, i in ((C, 2), (D, 0), (delta_bias, 0), (dt_weight, 0)) if x))
    return selective_scan_flops(b, t, k, d, n, dt_weight[2] if dt_weight is not None else 0)


@register_flop_formula(torch.ops.visionssm.selective_scan)
def _forward_flops(
    u, delta, A, B, C, D, delta_bias, dt_weight, order, num_tokens, *args, out_shape=None, **kwargs
) -> int:
    return _count(u, delta, A, B, C, D, delta_bias, dt_weight, order, num_tokens)


@register_flop_formula(torch.ops.visionssm.selective_scan_backward)
def _backward_flops(
    grad, states, u, delta, A, B, C, D, delta_bias, dt_weight, order, num_tokens, *args, out_shape=None, **kwargs
) -> int:
    return 2 * _count(u, delta, A, B, C, D, delta_bias, dt_weight, order, num_tokens)
