"""The scan in plain PyTorch: a few large sequential steps, and a backward that recomputes the states.

The sequence is cut into segments, a segment into groups of equal length. All groups of a segment advance together, one
step at a time, from a zero state; then the true entry state of each group follows from its predecessor's, and its
decayed image is added. So a step works on (groups, batch, routes, states, channels) at once: groups are chosen so that
this is large enough to hide the cost of an operator call, segments so that the working set stays in cache. When one step
is large enough by itself there is one group, and no image to add.
"""
from collections.abc import Iterator
from math import isqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tables import check_table
from .contract import Scan

_LANES = 16384  # elements that a sequential step should work on
_BLOCK = 1 << 18  # elements of one working tensor of a segment without groups: 1 MiB, about one core's L2
_GROUPED_BLOCK = 1 << 21  # with groups: a segment is swept some ten times, a last-level cache is enough


class _Segment(NamedTuple):
    """Steps start .. start + groups * length, and the table entries and row numbers they read."""

    start: int
    groups: int
    length: int
    tokens: Tensor | None  # (length, groups, b, K), rows of a (b * L) table
    routed: Tensor | None  # the same for a (b * L * K) table
    valid: Tensor | None  # (length, groups, 1, K, 1), False at entries of -1; None if there are none

    @property
    def stop(self) -> int:
        return self.start + self.groups * self.length


def forward(scan: Scan, save: bool = False) -> tuple[Tensor, Tensor | None]:
    """The output, (`scan.out_shape`), and if `save` the states at the segments' starts for `backward`."""
    b, K, n, d = scan.batch, scan.routes, scan.states, scan.channels
    dtype, device = scan.compute_dtype, scan.u.device
    delta_all = _softplus(_delta_raw(scan))
    A = scan.A.transpose(1, 2)
    carry = torch.zeros(b, K, n, d, dtype=dtype, device=device)
    y_routes = 1 if scan.out == "sum" else K
    y_length = scan.steps if scan.out == "step" else scan.num_tokens
    y_all = torch.zeros(b, y_length, y_routes, d, dtype=dtype, device=device)
    saved = []
    for segment in _segments(scan):
        if save:
            saved.append(carry)
        u = _take(scan.u, segment, scan.u_by_step, K, dtype)
        delta = _take_delta(delta_all, segment, scan, K)
        decay = torch.exp_(delta.unsqueeze(-2) * A)
        h = _input(delta, u, _take(scan.B, segment, scan.by_step, K, dtype))
        carry = _advance(decay, h, carry)
        if scan.C is None:
            y = h.squeeze(-2)
        else:
            y = _sum_states(h, _take(scan.C, segment, scan.by_step, K, dtype))
        if scan.D is not None:
            y = torch.addcmul(y, u, scan.D)
        if scan.out == "step" and segment.valid is not None:
            y = y * segment.valid
        _put(y_all, y, segment, scan.out == "step")
    y_all = y_all.to(scan.out_dtype)
    return y_all.squeeze(2) if scan.out == "sum" else y_all, torch.stack(saved) if save else None


def states_shape(scan: Scan) -> tuple[int, ...]:
    """Shape of the states that `forward` saves: (segments, b, K, N, d)."""
    count = len(_plan(scan.steps, scan.batch * scan.routes * scan.states * scan.channels))
    return count, scan.batch, scan.routes, scan.states, scan.channels


def backward(grad: Tensor, states: Tensor, scan: Scan) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, delta_bias and dt_weight, each in its canonical shape; None where absent."""
    b, K = scan.batch, scan.routes
    dtype = scan.compute_dtype
    raw = _delta_raw(scan)
    delta_all = _softplus(raw)
    A = scan.A.transpose(1, 2)
    grad = grad.unsqueeze(2) if scan.out == "sum" else grad

    du, dB = _zeros(scan.u, dtype), _zeros(scan.B, dtype)
    dC = None if scan.C is None else _zeros(scan.C, dtype)
    ddelta_all = torch.zeros_like(delta_all)
    dA = torch.zeros(K, *A.shape[1:], dtype=dtype, device=A.device)
    dD = None if scan.D is None else torch.zeros(K, scan.channels, dtype=dtype, device=A.device)
    dpadding = torch.zeros(K, scan.channels, dtype=dtype, device=A.device)  # gradient of delta at zero tokens
    later = torch.zeros(b, K, scan.states, scan.channels, dtype=dtype, device=A.device)  # a g of the next step

    for segment, entry in zip(reversed(list(_segments(scan))), reversed(states.unbind()), strict=True):
        u = _take(scan.u, segment, scan.u_by_step, K, dtype)
        delta = _take_delta(delta_all, segment, scan, K)
        B = _take(scan.B, segment, scan.by_step, K, dtype)
        dy = _take(grad, segment, scan.out == "step", K, dtype)
        if scan.out == "step" and segment.valid is not None:
            dy = dy * segment.valid
        decay = torch.exp_(delta.unsqueeze(-2) * A)
        h = _input(delta, u, B)
        _advance(decay.clone() if segment.groups > 1 else decay, h, entry)

        if scan.C is None:
            g = dy.unsqueeze(-2).clone()
        else:
            C = _take(scan.C, segment, scan.by_step, K, dtype)
            g = dy.unsqueeze(-2) * C.unsqueeze(-1)
            _put(dC, _sum_channels(h, dy), segment, scan.by_step)
        later = _retreat(decay, g, later)

        # decay becomes g a h_prev, the gradient of log(decay) = delta A
        decay[1:].mul_(h[:-1])
        decay[0, 0].mul_(entry)
        decay[0, 1:].mul_(h[-1, :-1])
        decay.mul_(g)
        del h
        g_input = _sum_states(g, B)
        _put(dB, _sum_channels(g, delta * u), segment, scan.by_step)
        del g
        ddelta = torch.addcmul(_sum_states(decay, A), u, g_input)
        dA += decay.mul_(delta.unsqueeze(-2)).sum((0, 1, 2))
        if segment.valid is not None and not scan.by_step:
            dpadding += ddelta.masked_fill(segment.valid, 0).sum((0, 1, 2))
        _put(ddelta_all, ddelta, segment, scan.by_step)
        g_input.mul_(delta)
        if scan.D is not None:
            g_input.addcmul_(dy, scan.D)
            dD += (dy * u).sum((0, 1, 2))
        _put(du, g_input, segment, scan.u_by_step)

    dz = ddelta_all.mul_(torch.sigmoid(raw))
    ddelta, dbias, dweight = _delta_raw_backward(dz, dpadding, scan)
    return (du.to(scan.u.dtype), ddelta, _share(dA.transpose(1, 2), scan.A), dB.to(scan.B.dtype),
            None if dC is None else dC.to(scan.C.dtype), None if dD is None else _share(dD, scan.D), dbias, dweight)


# --- the plan ---------------------------------------------------------------------------------------------------------

def _plan(steps: int, lanes: int) -> list[tuple[int, int, int]]:
    """(start, groups, length) of each segment, for steps that each work on `lanes` elements."""
    groups = min(_LANES // lanes, isqrt(steps))
    if groups < 2:
        length = max(1, min(steps, _BLOCK // lanes))
        return [(start, 1, min(length, steps - start)) for start in range(0, steps, length)]
    # a number of groups that divides the steps leaves no tail to walk step by step
    groups = min(range(max(2, groups * 2 // 3), groups * 4 // 3 + 1), key=lambda g: (steps % g, abs(g - groups)))
    plan, start = [], 0
    longest = max(1, _GROUPED_BLOCK // (lanes * groups))
    while steps - start >= groups:
        length = min(longest, (steps - start) // groups)
        plan.append((start, groups, length))
        start += groups * length
    if start < steps:
        plan.append((start, 1, steps - start))
    return plan


def _segments(scan: Scan) -> Iterator[_Segment]:
    b, K, L, order = scan.batch, scan.routes, scan.num_tokens, scan.order
    plan = _plan(scan.steps, b * K * scan.states * scan.channels)
    if order is None:
        for part in plan:
            yield _Segment(*part, None, None, None)
        return
    padded = check_table(order, L).padded
    images = torch.arange(b, device=order.device)[:, None] * L
    routes = torch.arange(K, device=order.device)
    for start, groups, length in plan:
        entries = order[:, start:start + groups * length].long().unflatten(1, (groups, length)).permute(2, 1, 0)
        valid = (entries >= 0)[:, :, None, :, None] if padded else None
        tokens = (entries.clamp(min=0) if padded else entries).unsqueeze(2) + images
        yield _Segment(start, groups, length, tokens, tokens * K + routes, valid)


# --- moving between storage (b, S, 1 or K, c) and steps (length, groups, b, K, c) ---------------------------------------

def _steps(x: Tensor, segment: _Segment) -> Tensor:
    return x[:, segment.start:segment.stop].unflatten(1, (segment.groups, segment.length)).permute(2, 1, 0, 3, 4)


def _take(x: Tensor, segment: _Segment, by_step: bool, routes: int, dtype: torch.dtype) -> Tensor:
    """x as scanned, (length, groups, b, routes, c); zeros at entries of -1."""
    if by_step or segment.tokens is None:
        return _steps(x, segment).to(dtype).expand(-1, -1, -1, routes, -1)
    index = segment.tokens if x.shape[2] == 1 else segment.routed
    rows = x.reshape(-1, x.shape[-1]).index_select(0, index.reshape(-1)).to(dtype)
    rows = rows.view(*index.shape, x.shape[-1])
    return rows if segment.valid is None else rows.mul_(segment.valid)


def _take_delta(delta: Tensor, segment: _Segment, scan: Scan, routes: int) -> Tensor:
    """Step sizes as scanned; a zero token's is softplus(delta_bias)."""
    rows = _take(delta, segment, scan.by_step, routes, delta.dtype)
    if segment.valid is None or scan.by_step:
        return rows
    bias = scan.A.new_zeros(1, scan.channels) if scan.delta_bias is None else scan.delta_bias
    return torch.where(segment.valid, rows, F.softplus(bias))


def _put(x: Tensor, rows: Tensor, segment: _Segment, by_step: bool) -> None:
    """Add what belongs to each step, (length, groups, b, K, c), to where `_take` read it; nothing at entries of -1."""
    shared = x.shape[2] == 1
    if by_step or segment.tokens is None:
        _steps(x, segment).add_(rows.sum(3, keepdim=True) if shared and rows.shape[3] > 1 else rows)
        return
    if segment.valid is not None:
        rows = rows * segment.valid
    index = segment.tokens if shared else segment.routed
    x.view(-1, x.shape[-1]).index_add_(0, index.reshape(-1), rows.reshape(-1, x.shape[-1]))


def _zeros(x: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(x.shape, dtype=dtype, device=x.device)


def _share(grad: Tensor, like: Tensor) -> Tensor:
    """Sum the gradient over the routes that share a parameter."""
    grad = grad.sum(0, keepdim=True) if like.shape[0] < grad.shape[0] else grad
    return grad.to(like.dtype).contiguous()


# --- the recurrence, on (length, groups, b, K, N, d) --------------------------------------------------------------------

def _input(delta: Tensor, u: Tensor, B: Tensor) -> Tensor:
    return (delta * u).unsqueeze(-2) * B.unsqueeze(-1)


def _sum_states(h: Tensor, weight: Tensor) -> Tensor:
    """Sum of h (..., N, d) over its states, weighted by (..., N) or, for rates, by (K, N, d)."""
    if h.shape[-2] == 1:
        return h.squeeze(-2) * (weight.squeeze(-2) if weight.ndim == 3 else weight)
    if weight.ndim == 3:
        return (h * weight).sum(-2)
    return torch.matmul(weight.unsqueeze(-2), h).squeeze(-2)


def _sum_channels(h: Tensor, weight: Tensor) -> Tensor:
    """Sum of h (..., N, d) over its channels, weighted by (..., d)."""
    if h.shape[-2] == 1:
        return (h.squeeze(-2) * weight).sum(-1, keepdim=True)
    return torch.matmul(h, weight.unsqueeze(-1)).squeeze(-1)


def _advance(decay: Tensor, h: Tensor, entry: Tensor) -> Tensor:
    """Turn inputs into states in place, from the state before the segment; returns the state after it.

    With several groups `decay` is overwritten by its running products.
    """
    a, x = decay.unbind(), h.unbind()
    if h.shape[1] == 1:
        previous = entry
        for t in range(len(x)):
            previous = x[t].addcmul_(a[t], previous)
        return previous[0].clone() if previous is not entry else entry
    for t in range(1, len(x)):
        x[t].addcmul_(a[t], x[t - 1])
        a[t].mul_(a[t - 1])
    entries = [entry]
    for end, product in zip(x[-1].unbind(), a[-1].unbind(), strict=True):
        entries.append(torch.addcmul(end, product, entries[-1]))
    h.addcmul_(decay, torch.stack(entries[:-1]))
    return entries[-1]


def _retreat(decay: Tensor, g: Tensor, later: Tensor) -> Tensor:
    """Turn the outputs' gradients into the states' in place, last step first.

    `later` is decay times gradient of the step after the segment; returns the same of the segment's first step.
    """
    a, x = decay.unbind(), g.unbind()
    if g.shape[1] == 1:
        x[-1].add_(later)
        for t in range(len(x) - 2, -1, -1):
            x[t].addcmul_(a[t + 1], x[t + 1])
        return a[0][0] * x[0][0]
    products = torch.empty_like(decay)  # of the decays after each step, to the group's end
    p = products.unbind()
    p[-1].fill_(1)
    for t in range(len(x) - 2, -1, -1):
        x[t].addcmul_(a[t + 1], x[t + 1])
        torch.mul(p[t + 1], a[t + 1], out=p[t])
    entries = []
    for first, product, rate in zip(reversed(x[0].unbind()), reversed(p[0].unbind()), reversed(a[0].unbind()), strict=True):
        entries.append(later)
        later = torch.addcmul(first, product, later).mul_(rate)
    g.addcmul_(products, torch.stack(entries[::-1]))
    return later


# --- the step size ------------------------------------------------------------------------------------------------------

def _delta_raw(scan: Scan) -> Tensor:
    """Step sizes before the softplus where they are stored, (b, S, 1 or K, d)."""
    dtype = scan.compute_dtype
    delta, weight, bias = scan.delta, scan.dt_weight, scan.delta_bias
    if weight is None:
        delta = delta.to(dtype)
        return delta if bias is None else delta + bias
    b, S, k, R = delta.shape
    delta, weight = delta.to(dtype), weight.to(dtype)
    routes = max(k, weight.shape[0], 1 if bias is None else bias.shape[0])
    out = torch.empty(b * S, routes, scan.channels, dtype=dtype, device=delta.device)
    for r in range(routes):
        # one product per route, written where the route's rows lie
        rows = delta[:, :, min(r, k - 1)].reshape(b * S, R)
        w = weight[min(r, weight.shape[0] - 1)].T
        if bias is None:
            torch.mm(rows, w, out=out[:, r])
        else:
            torch.addmm(bias[min(r, bias.shape[0] - 1)], rows, w, out=out[:, r])
    return out.view(b, S, routes, scan.channels)


def _delta_raw_backward(dz: Tensor, dpadding: Tensor, scan: Scan) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of delta, delta_bias and dt_weight from that of `_delta_raw` and of the zero tokens' step sizes."""
    delta, weight, bias = scan.delta, scan.dt_weight, scan.delta_bias
    dbias = None
    if bias is not None:
        dbias = _share(dz.sum((0, 1)), bias) + _share(dpadding * torch.sigmoid(bias), bias)
    if weight is None:
        ddelta = dz.sum(2, keepdim=True) if delta.shape[2] < dz.shape[2] else dz
        return ddelta.to(delta.dtype), dbias, None
    b, S, k, R = delta.shape
    dz = dz.view(b * S, *dz.shape[2:])
    ddelta = torch.zeros(b * S, k, R, dtype=dz.dtype, device=dz.device)
    dweight = torch.zeros(weight.shape, dtype=dz.dtype, device=dz.device)
    for r in range(dz.shape[1]):
        i, j = min(r, k - 1), min(r, weight.shape[0] - 1)
        ddelta[:, i] += dz[:, r] @ weight[j].to(dz.dtype)
        dweight[j] += dz[:, r].T @ delta[:, :, i].reshape(b * S, R).to(dz.dtype)
    return ddelta.view(delta.shape).to(delta.dtype), dbias, dweight.to(weight.dtype)


def _softplus(z: Tensor) -> Tensor:
    """log(1 + e^z), linear above 20; several times the speed of the library's on a CPU, to the last bit or two."""
    if z.device.type != "cpu":
        return F.softplus(z)
    e = z.clamp(max=20).exp_()
    w = e + 1
    e.sub_(w - 1).div_(w)  # what the sum lost, to first order
    return torch.maximum(w.log_().add_(e), z)
