"""The scan in PyTorch's differentiable operators, all routes at once and nothing in place.

For whatever can go through no hand-written backward: derivatives of derivatives, tangents, the transforms of
torch.func, exporters that know no custom operator. It keeps several tensors of (b, T, k, d, N).
"""

from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from .contract import Scan

_LENGTH = 8  # of a block: few operators, and an eighth of the work is left for the blocks' ends


def _states(decay: Tensor, x: Tensor, entry: Tensor | None) -> Tensor:
    """The states h_t = decay_t h_{t-1} + x_t, (b, T, ...), from the one before, (b, ...), in some 8 log8(T) steps.

    All blocks advance together from a zero state; the states at their ends obey such a recurrence again, whose decays
    are the blocks' products.
    """
    T = x.shape[1]
    length = min(T, _LENGTH)
    a = _filled(decay).unflatten(1, (-1, length)).split(1, 2)  # each (b, blocks, 1, ...)
    h = list(_filled(x).unflatten(1, (-1, length)).split(1, 2))
    for t in range(1, length):
        h[t] = a[t] * h[t - 1] + h[t]
    states = torch.cat(h, 2)
    if T > length or entry is not None:
        products = list(accumulate(a, torch.mul))
        before = torch.zeros_like(h[0][:, :1]) if entry is None else entry[:, None, None]
        if T > length:
            ends = _states(products[-1][:, :-1, 0], h[-1][:, :-1, 0], entry)
            before = torch.cat([before, ends.unsqueeze(2)], 1)
        states = states + torch.cat(products, 2) * before
    return states.flatten(1, 2)[:, :T]


def _filled(x: Tensor) -> Tensor:
    """x (b, T, ...) with zeros after its steps, up to whole blocks."""
    T = x.shape[1]
    missing = -T % min(T, _LENGTH)
    return F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else x


def selective_scan_formula(scan: Scan) -> tuple[Tensor, Tensor]:
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
    h = _states(decay, ((delta * u)[..., None] * B.unsqueeze(-2)).expand_as(decay), scan.initial_state)
    last = h[:, scan.steps - 1]
    y = h.squeeze(-1) if scan.C is None else (h * _at_steps(scan.C, scan, scan.by_step).unsqueeze(-2)).sum(-1)
    if scan.D is not None:
        y = y + scan.D * u
    y = y[:, : scan.steps]
    if scan.order is not None:
        y = y * (scan.order.T >= 0)[None, :, :, None]
        if scan.out != "step":
            index = scan.order.long().clamp(min=0)
            zeros = torch.zeros(scan.batch, scan.num_tokens, scan.channels, dtype=dtype, device=y.device)
            y = torch.stack([zeros.index_add(1, index[k], y[:, :, k]) for k in range(K)], 2)
    return (y.sum(2) if scan.out == "sum" else y).to(scan.out_dtype), last


def _at_steps(x: Tensor, scan: Scan, by_step: bool) -> Tensor:
    """x (b, S, 1 or K, c) as scanned, (b, T, 1 or K, c); an entry of -1 reads zeros, as do steps that fill a block."""
    x = x.to(scan.compute_dtype)
    if not by_step and scan.order is not None:
        x = x.expand(-1, -1, scan.routes, -1)
        index = scan.order.long().clamp(min=0)
        rows = torch.stack([x[:, :, k].index_select(1, index[k]) for k in range(scan.routes)], 2)
        x = rows * (scan.order.T >= 0)[None, :, :, None]
    return _filled(x)
