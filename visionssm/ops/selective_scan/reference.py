"""The oracle: the recurrence written out step by step, differentiable by autograd, in float32 or float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .contract import Scan


def selective_scan_reference(scan: Scan) -> Tensor:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t . h_t + D u_t  (Mamba, arXiv:2312.00752, section 3).

    Returns `scan.out_shape` in `scan.out_dtype`; about one Python iteration per step and route.
    """
    b, d, K, T, dtype = scan.batch, scan.channels, scan.routes, scan.steps, scan.compute_dtype
    routes = []
    for k in range(K):
        table = torch.arange(T, device=scan.u.device) if scan.order is None else scan.order[k].long()
        u = _at_steps(scan.u, k, table, scan.u_by_step, dtype)  # (b, T, d)
        delta = _at_steps(scan.delta, k, table, scan.by_step, dtype)  # (b, T, d) or (b, T, R)
        B = _at_steps(scan.B, k, table, scan.by_step, dtype)  # (b, T, N)
        C = None if scan.C is None else _at_steps(scan.C, k, table, scan.by_step, dtype)
        if scan.dt_weight is not None:
            delta = delta @ _route(scan.dt_weight, k).to(dtype).T
        if scan.delta_bias is not None:
            delta = delta + _route(scan.delta_bias, k)
        delta = F.softplus(delta)
        A = _route(scan.A, k)
        h = u.new_zeros(b, d, scan.states)
        steps = []
        for t in range(T):
            decay = torch.exp(delta[:, t, :, None] * A)
            h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
            out = h[..., 0] if C is None else (h * C[:, t, None, :]).sum(-1)
            steps.append(out if scan.D is None else out + _route(scan.D, k) * u[:, t])
        routes.append(torch.stack(steps, 1) * (table >= 0)[None, :, None])
    y = torch.stack(routes, 2)  # (b, T, K, d)
    if scan.out == "step":
        return y.to(scan.out_dtype)
    if scan.order is not None:
        merged = []
        for k in range(K):
            table = scan.order[k].long()
            zeros = y.new_zeros(b, scan.num_tokens, d)
            merged.append(zeros.index_add(1, table.clamp(min=0), y[:, :, k]))
        y = torch.stack(merged, 2)  # (b, L, K, d)
    return (y.sum(2) if scan.out == "sum" else y).to(scan.out_dtype)


def _route(x: Tensor, k: int) -> Tensor:
    return x[min(k, x.shape[0] - 1)]


def _at_steps(x: Tensor, k: int, table: Tensor, by_step: bool, dtype: torch.dtype) -> Tensor:
    """x (b, S, 1 or K, c) of route k as scanned, (b, T, c); a token entry of -1 reads zeros."""
    x = x[:, :, min(k, x.shape[2] - 1)].to(dtype)
    if by_step:
        return x
    return x[:, table.clamp(min=0)] * (table >= 0)[None, :, None]
