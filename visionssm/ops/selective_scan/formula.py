"""The scan in PyTorch's differentiable operators, all routes at once and nothing in place.

For whatever can go through no hand-written backward: derivatives of derivatives, tangents, the transforms of
torch.func, exporters that know no custom operator. It keeps several tensors of (b, T, k, d, N).
"""

from collections.abc import Callable
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from .contract import Scan

Recurrence = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # decay, input (b, T, ...), state before (b, ...)


def in_blocks(decay: Tensor, x: Tensor, entry: Tensor | None) -> Tensor:
    """The states h_t = decay_t h_{t-1} + x_t in some 2 sqrt(T) steps: all blocks at once, then block after block."""
    T = x.shape[1]
    length = isqrt(T - 1) + 1
    blocks = -(-T // length)
    end = (0, 0) * (x.ndim - 2) + (0, blocks * length - T)
    a = F.pad(decay, end, value=1.0).unflatten(1, (blocks, length)).unbind(2)
    h = list(F.pad(x, end).unflatten(1, (blocks, length)).unbind(2))
    products = [a[0]]
    for t in range(1, length):
        h[t] = a[t] * h[t - 1] + h[t]
        products.append(a[t] * products[-1])
    before = [torch.zeros_like(h[0][:, 0]) if entry is None else entry]
    for block in range(blocks - 1):
        before.append(products[-1][:, block] * before[-1] + h[-1][:, block])
    states = torch.stack(h, 2) + torch.stack(products, 2) * torch.stack(before, 1).unsqueeze(2)
    return states.flatten(1, 2)[:, :T]


def selective_scan_formula(scan: Scan, recurrence: Recurrence = in_blocks) -> tuple[Tensor, Tensor]:
    """The output, `scan.out_shape`, and the state after the last step, (b, K, d, N)."""
    K, dtype = scan.routes, scan.compute_dtype
    u = _at_steps(scan.u, scan, scan.u_by_step)
    delta, B = (_at_steps(x, scan, scan.by_step) for x in (scan.delta, scan.B))  # (b, T, 1 or K, c)
    if scan.dt_weight is not None:
        delta = torch.einsum("btkr,kdr->btkd", delta.expand(-1, -1, K, -1), scan.dt_weight.to(dtype).expand(K, -1, -1))
    if scan.delta_bias is not None:
        delta = delta + scan.delta_bias
    if scan.softplus:
        delta = F.softplus(delta)
    decay = torch.exp(delta[..., None] * scan.A).expand(-1, -1, K, -1, -1)
    h = recurrence(decay, ((delta * u)[..., None] * B.unsqueeze(-2)).expand_as(decay), scan.initial_state)
    last = h[:, -1]
    y = h.squeeze(-1) if scan.C is None else (h * _at_steps(scan.C, scan, scan.by_step).unsqueeze(-2)).sum(-1)
    if scan.D is not None:
        y = y + scan.D * u
    if scan.order is not None:
        y = y * (scan.order.T >= 0)[None, :, :, None]
        if scan.out != "step":
            index = scan.order.long().clamp(min=0)
            zeros = torch.zeros(scan.batch, scan.num_tokens, scan.channels, dtype=dtype, device=y.device)
            y = torch.stack([zeros.index_add(1, index[k], y[:, :, k]) for k in range(K)], 2)
    return (y.sum(2) if scan.out == "sum" else y).to(scan.out_dtype), last


def _at_steps(x: Tensor, scan: Scan, by_step: bool) -> Tensor:
    """x (b, S, 1 or K, c) as scanned, (b, T, 1 or K, c); an entry of -1 reads zeros."""
    x = x.to(scan.compute_dtype)
    if by_step or scan.order is None:
        return x
    x = x.expand(-1, -1, scan.routes, -1)
    index = scan.order.long().clamp(min=0)
    rows = torch.stack([x[:, :, k].index_select(1, index[k]) for k in range(scan.routes)], 2)
    return rows * (scan.order.T >= 0)[None, :, :, None]
