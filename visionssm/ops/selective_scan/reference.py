"""The oracle: the recurrence written out step by step, differentiable by autograd, in float32 or float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tables import check_table
from .backend import Backend
from .contract import Scan


def selective_scan_reference(scan: Scan) -> tuple[Tensor, Tensor]:
    """h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t;  y_t = C_t . h_t + D u_t  (Mamba, arXiv:2312.00752, section 3).

    Returns `scan.out_shape` in `scan.out_dtype`, and the last states (b, K, d, N); about one Python iteration per step
    and route.
    """
    b, d, K, T, dtype = scan.batch, scan.channels, scan.routes, scan.steps, scan.compute_dtype
    routes, last = [], []
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
        if scan.softplus:
            delta = F.softplus(delta)
        A = _route(scan.A, k)
        h = u.new_zeros(b, d, scan.states) if scan.initial_state is None else scan.initial_state[:, k]
        steps = []
        for t in range(T):
            decay = torch.exp(delta[:, t, :, None] * A)
            h = decay * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None, :]
            out = h[..., 0] if C is None else (h * C[:, t, None, :]).sum(-1)
            steps.append(out if scan.D is None else out + _route(scan.D, k) * u[:, t])
        routes.append(torch.stack(steps, 1) * (table >= 0)[None, :, None])
        last.append(h)
    y, last_state = torch.stack(routes, 2), torch.stack(last, 1)  # (b, T, K, d), (b, K, d, N)
    if scan.out == "step":
        return y.to(scan.out_dtype), last_state
    if scan.order is not None:
        merged = []
        for k in range(K):
            table = scan.order[k].long()
            zeros = y.new_zeros(b, scan.num_tokens, d)
            merged.append(zeros.index_add(1, table.clamp(min=0), y[:, :, k]))
        y = torch.stack(merged, 2)  # (b, L, K, d)
    return (y.sum(2) if scan.out == "sum" else y).to(scan.out_dtype), last_state


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `Backend` says; nothing is saved, the backward computes the scan anew."""
    if scan.order is not None:
        check_table(scan.order, scan.num_tokens)
    with torch.no_grad():
        y, last = selective_scan_reference(scan)
    return y, last if scan.last_state else None, last.new_empty(states_shape(scan)) if save else None


def backward(grad: Tensor, grad_last: Tensor | None, states: Tensor, scan: Scan) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    leaves = [None if t is None else t.detach().requires_grad_() for t in scan.tensors]
    with torch.enable_grad():
        outputs = selective_scan_reference(Scan._make([*leaves, *scan[len(leaves) :]]))
    given = [t for t in leaves if t is not None]
    if grad_last is None:
        grads = torch.autograd.grad(outputs[0], given, grad, materialize_grads=True)
    else:
        grads = torch.autograd.grad(outputs, given, (grad, grad_last), materialize_grads=True)
    found = iter(grads)
    return tuple(None if t is None else next(found).contiguous() for t in leaves)


def states_shape(scan: Scan) -> tuple[int, ...]:
    """As `Backend` says."""
    return (0,)


def _route(x: Tensor, k: int) -> Tensor:
    return x[min(k, x.shape[0] - 1)]


def _at_steps(x: Tensor, k: int, table: Tensor, by_step: bool, dtype: torch.dtype) -> Tensor:
    """x (b, S, 1 or K, c) of route k as scanned, (b, T, c); a token entry of -1 reads zeros."""
    x = x[:, :, min(k, x.shape[2] - 1)].to(dtype)
    if by_step:
        return x
    return x[:, table.clamp(min=0)] * (table >= 0)[None, :, None]


# never taken unasked: it is there to be compared with
BACKEND = Backend("reference", (), lambda device, dtype: None, forward, backward, states_shape)
