"""The scan as a short program without loops or in-place operations, for exporters that know no custom operator."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .contract import Scan


def selective_scan_doubling(scan: Scan) -> Tensor:
    """All steps at once, in log2(T) rounds (recursive doubling: Hillis and Steele, CACM 1986).

    Each round joins every step with the one 1, 2, 4, ... steps before: (a, x) after (b, y) is (a b, a y + x).
    Forward only; returns `scan.out_shape`.
    """
    K, T, dtype = scan.routes, scan.steps, scan.compute_dtype
    u = _at_steps(scan.u, scan, scan.u_by_step)
    delta, B = (_at_steps(x, scan, scan.by_step) for x in (scan.delta, scan.B))  # (b, T, 1 or K, c)
    if scan.dt_weight is not None:
        delta = torch.einsum("btkr,kdr->btkd", delta.expand(-1, -1, K, -1), scan.dt_weight.to(dtype).expand(K, -1, -1))
    if scan.delta_bias is not None:
        delta = delta + scan.delta_bias
    delta = F.softplus(delta)
    decay = torch.exp(delta[..., None] * scan.A).expand(-1, -1, K, -1, -1)
    h = ((delta * u)[..., None] * B.unsqueeze(-2)).expand_as(decay)
    distance = 1
    while distance < T:
        # before the first step the decay is 1 and the input 0
        before = F.pad(h[:, :-distance], (0, 0, 0, 0, 0, 0, distance, 0))
        h = decay * before + h
        decay = decay * F.pad(decay[:, :-distance], (0, 0, 0, 0, 0, 0, distance, 0), value=1.0)
        distance *= 2
    y = h.squeeze(-1) if scan.C is None else (h * _at_steps(scan.C, scan, scan.by_step).unsqueeze(-2)).sum(-1)
    if scan.D is not None:
        y = y + scan.D * u
    if scan.order is None:
        return (y.sum(2) if scan.out == "sum" else y).to(scan.out_dtype)
    y = y * (scan.order.T >= 0)[None, :, :, None]
    if scan.out == "step":
        return y.to(scan.out_dtype)
    index = scan.order.long().clamp(min=0)
    zeros = torch.zeros(scan.batch, scan.num_tokens, scan.channels, dtype=dtype, device=y.device)
    routes = [zeros.index_add(1, index[k], y[:, :, k]) for k in range(K)]
    return (sum(routes) if scan.out == "sum" else torch.stack(routes, 2)).to(scan.out_dtype)


def _at_steps(x: Tensor, scan: Scan, by_step: bool) -> Tensor:
    """x (b, S, 1 or K, c) as scanned, (b, T, 1 or K, c); an entry of -1 reads zeros."""
    x = x.to(scan.compute_dtype)
    if by_step or scan.order is None:
        return x
    x = x.expand(-1, -1, scan.routes, -1)
    index = scan.order.long().clamp(min=0)
    rows = torch.stack([x[:, :, k].index_select(1, index[k]) for k in range(scan.routes)], 2)
    return rows * (scan.order.T >= 0)[None, :, :, None]
