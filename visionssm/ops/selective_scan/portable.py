"""The scan in plain PyTorch: a few large sequential steps, and a backward that recomputes the states.

The sequence is cut into segments, a segment into groups of equal length. All groups of a segment advance together, one
step at a time, from a zero state; then the true entry state of each group follows from its predecessor's, and its
decayed image is added. So a step works on (groups, batch, routes, states, channels) at once: groups are chosen so that
this is large enough to hide the cost of an operator call, segments so that the working set stays in cache. When one
step is large enough by itself there is one group, and no image to add.
"""

import threading
from collections.abc import Iterator
from math import isqrt, prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tables import check_table
from .backend import Backend
from .contract import Scan

_LANES = 16384  # elements that a sequential step should work on
_BLOCK = 1 << 19  # elements of one working tensor of a segment: 2 MiB, so that some ten of them stay in cache


class _Scratch(threading.local):
    """Working memory that outlives a call: fresh pages cost a CPU more than the arithmetic done on them."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised contiguous tensor; valid until the name is asked for again."""
        size = prod(shape)
        if like.device.type != "cpu" or size > 2 * _BLOCK:
            return like.new_empty(shape)
        buffer = self.buffers.get((name, like.dtype))
        if buffer is None or buffer.numel() < size:
            with torch.inference_mode(False):  # it may be used for training later
                buffer = self.buffers[name, like.dtype] = torch.empty(size, dtype=like.dtype)
        return buffer[:size].view(shape)


_scratch = _Scratch()


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


def forward(scan: Scan, save: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `Backend` says; what is saved are the states at the segments' starts."""
    b, K, n, d = scan.batch, scan.routes, scan.states, scan.channels
    A = scan.A.transpose(1, 2).contiguous()
    state = A.new_zeros(b, K, n, d) if scan.initial_state is None else scan.initial_state.transpose(2, 3).contiguous()
    y_length = scan.steps if scan.out == "step" else scan.num_tokens
    y_all = A.new_zeros(b, y_length, 1 if scan.out == "sum" else K, d)
    saved = []
    for segment in _segments(scan):
        if save:
            saved.append(state)
        u, delta, B, C, _ = _read(scan, segment, A)
        h = _input(delta, u, B)
        state = _advance(_decay(delta, A), h, state)
        y = _sum_states(h, C, "y")
        if scan.D is not None:
            y.addcmul_(u, scan.D)
        if scan.out == "step" and segment.valid is not None:
            y.mul_(segment.valid)
        _put(y_all, y, segment, scan.out == "step")
    y_all = y_all.to(scan.out_dtype)
    last = state.transpose(2, 3).contiguous() if scan.last_state else None
    return y_all.squeeze(2) if scan.out == "sum" else y_all, last, torch.stack(saved) if save else None


def states_shape(scan: Scan) -> tuple[int, ...]:
    """Shape of the states that `forward` saves: (segments, b, K, N, d)."""
    count = len(_plan(scan.steps, scan.batch * scan.routes * scan.states * scan.channels))
    return count, scan.batch, scan.routes, scan.states, scan.channels


def backward(grad: Tensor, grad_last: Tensor | None, states: Tensor, scan: Scan) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    b, K, n, d = scan.batch, scan.routes, scan.states, scan.channels
    dtype = scan.compute_dtype
    A = scan.A.transpose(1, 2).contiguous()
    grad = grad.unsqueeze(2) if scan.out == "sum" else grad

    du, ddelta, dB = (torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (scan.u, scan.delta, scan.B))
    dC, dweight = (
        None if x is None else torch.zeros(x.shape, dtype=dtype, device=x.device) for x in (scan.C, scan.dt_weight)
    )
    dA, dD, dbias = A.new_zeros(K, n, d), A.new_zeros(K, d), A.new_zeros(K, d)
    # decay times gradient of the step after
    later = A.new_zeros(b, K, n, d) if grad_last is None else grad_last.transpose(2, 3).contiguous()

    for segment, entry in zip(reversed(list(_segments(scan))), reversed(states.unbind()), strict=True):
        u, delta, B, C, slope = _read(scan, segment, A, slope=True)
        dy = _take(grad, segment, scan.out == "step", K, A, "dy")
        if scan.out == "step" and segment.valid is not None:
            dy = dy * segment.valid
        decay = _decay(delta, A)
        h = _input(delta, u, B)
        _advance(_scratch.get("products", decay.shape, A).copy_(decay) if segment.groups > 1 else decay, h, entry)

        g = _scratch.get("g", h.shape, A)
        if dC is None:
            g.copy_(dy.unsqueeze(-2))
        else:
            torch.mul(dy.unsqueeze(-2), C.unsqueeze(-1), out=g)
            _put(dC, _sum_channels(h, dy), segment, scan.by_step)
        later = _retreat(decay, g, later)

        # decay becomes g a h_prev, the gradient of log(decay) = delta A
        decay[1:].mul_(h[:-1])
        decay[0, 0].mul_(entry)
        decay[0, 1:].mul_(h[-1, :-1])
        decay.mul_(g)
        g_input = _sum_states(g, B, "g_input")
        dz = _sum_states(decay, A, "dz").addcmul_(u, g_input)
        if slope is not None:
            dz.mul_(slope)
        dA += decay.mul_(delta.unsqueeze(-2)).sum((0, 1, 2))
        dbias += dz.sum((0, 1, 2))
        _step_size_backward(dz, ddelta, dweight, scan, segment)
        _put(dB, _sum_channels(g, torch.mul(delta, u, out=dz)), segment, scan.by_step)
        g_input.mul_(delta)
        if scan.D is not None:
            g_input.addcmul_(dy, scan.D)
            dD += torch.mul(dy, u, out=dz).sum((0, 1, 2))
        _put(du, g_input, segment, scan.u_by_step)

    grads = zip(
        (du, ddelta, dA.transpose(1, 2), dB, dC, dD, dbias, dweight, later.transpose(2, 3)), scan.tensors, strict=True
    )
    return tuple(None if g is None or x is None else _share(g, x) for g, x in grads)


# --- the plan ---------------------------------------------------------------------------------------------------------


def _plan(steps: int, lanes: int) -> list[tuple[int, int, int]]:
    """(start, groups, length) of each segment, for steps that each work on `lanes` elements."""
    longest = max(1, min(steps, _BLOCK // lanes))
    groups = min(_LANES // lanes, isqrt(2 * longest))
    if groups < 2:
        return [(start, 1, min(longest, steps - start)) for start in range(0, steps, longest)]
    longest = max(1, longest // 2)  # groups need more buffers, and gain nothing from longer segments
    # equal segments, and a number of groups that leaves few steps over, to be walked one by one
    span = -(-steps // -(-steps // longest))
    groups = min(range(max(2, groups * 2 // 3), groups * 4 // 3 + 1), key=lambda g: (steps % g, abs(g - groups)))
    length = max(1, span // groups)
    plan, start = [], 0
    while steps - start >= groups:
        plan.append((start, groups, min(length, (steps - start) // groups)))
        start += groups * plan[-1][2]
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
        entries = order[:, start : start + groups * length].long().unflatten(1, (groups, length)).permute(2, 1, 0)
        valid = (entries >= 0)[:, :, None, :, None] if padded else None
        tokens = (entries.clamp(min=0) if padded else entries).unsqueeze(2) + images
        yield _Segment(start, groups, length, tokens, tokens * K + routes, valid)


# --- moving between storage (b, S, 1 or K, c) and steps (length, groups, b, K, c) -------------------------------------


def _steps(x: Tensor, segment: _Segment) -> Tensor:
    return x[:, segment.start : segment.stop].unflatten(1, (segment.groups, segment.length)).permute(2, 1, 0, 3, 4)


def _take(x: Tensor, segment: _Segment, by_step: bool, routes: int, like: Tensor, name: str) -> Tensor:
    """x as scanned, (length, groups, b, routes, c), to be read only; zeros at entries of -1."""
    if by_step or segment.tokens is None or segment.routed is None:
        return _steps(x, segment).to(like.dtype).expand(-1, -1, -1, routes, -1)
    index = segment.tokens if x.shape[2] == 1 else segment.routed
    shape = *index.shape, x.shape[-1]
    rows = _scratch.get(name, shape, x)
    torch.index_select(x.reshape(-1, shape[-1]), 0, index.reshape(-1), out=rows.view(-1, shape[-1]))
    rows = rows.to(like.dtype)
    return rows if segment.valid is None else rows.mul_(segment.valid)


def _read(scan: Scan, segment: _Segment, like: Tensor, slope: bool = False) -> tuple[Any, ...]:
    """u, step size, B, C as scanned, and if asked for the derivative of the softplus, if there is one."""
    K = scan.routes
    u = _take(scan.u, segment, scan.u_by_step, K, like, "u")
    z = _step_size(scan, segment, like)
    derivative = torch.sigmoid(z, out=_scratch.get("slope", z.shape, z)) if slope and scan.softplus else None
    delta = (_softplus_(z) if scan.softplus else z).expand_as(u)
    B, C = (
        None if x is None else _take(x, segment, scan.by_step, K, like, name)
        for x, name in ((scan.B, "B"), (scan.C, "C"))
    )
    return u, delta, B, C, derivative


def _put(x: Tensor, rows: Tensor, segment: _Segment, by_step: bool) -> None:
    """Add what belongs to each step, (length, groups, b, K, c), to where `_take` read it; nothing at entries of -1."""
    shared = x.shape[2] == 1
    if by_step or segment.tokens is None or segment.routed is None:
        _steps(x, segment).add_(rows.sum(3, keepdim=True) if shared and rows.shape[3] > 1 else rows)
        return
    if segment.valid is not None:
        rows = rows * segment.valid
    index = segment.tokens if shared else segment.routed
    x.view(-1, x.shape[-1]).index_add_(0, index.reshape(-1), rows.reshape(-1, x.shape[-1]))


def _share(grad: Tensor, like: Tensor) -> Tensor:
    """Sum the gradient of a parameter over the routes that share it."""
    grad = grad.sum(0, keepdim=True) if grad.shape != like.shape else grad
    return grad.to(like.dtype).contiguous()


# --- the recurrence, on (length, groups, b, K, N, d) ------------------------------------------------------------------


def _decay(delta: Tensor, A: Tensor) -> Tensor:
    shape = *delta.shape[:-1], *A.shape[1:]
    return torch.mul(delta.unsqueeze(-2), A, out=_scratch.get("decay", shape, A)).exp_()


def _input(delta: Tensor, u: Tensor, B: Tensor) -> Tensor:
    x = torch.mul(delta, u, out=_scratch.get("input", u.shape, delta))
    if B.shape[-1] == 1:
        return x.mul_(B).unsqueeze(-2)
    h = _scratch.get("h", (*u.shape[:-1], B.shape[-1], u.shape[-1]), delta)
    return torch.mul(x.unsqueeze(-2), B.unsqueeze(-1), out=h)


def _sum_states(h: Tensor, weight: Tensor | None, name: str) -> Tensor:
    """Sum of h (..., N, d) over its states, weighted by (..., N), by rates (K, N, d), or plainly."""
    out = _scratch.get(name, (*h.shape[:-2], h.shape[-1]), h)
    if weight is None:
        return out.copy_(h.squeeze(-2))
    weights = (weight if weight.ndim == 3 else weight.unsqueeze(-1)).unbind(-2)
    torch.mul(h[..., 0, :], weights[0], out=out)
    for i in range(1, h.shape[-2]):
        out.addcmul_(h[..., i, :], weights[i])
    return out


def _sum_channels(h: Tensor, weight: Tensor) -> Tensor:
    """Sum of h (..., N, d) over its channels, weighted by (..., d)."""
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
    products = _scratch.get("products", decay.shape, decay)  # of the decays after each step, to the group's end
    p = products.unbind()
    p[-1].fill_(1)
    for t in range(len(x) - 2, -1, -1):
        x[t].addcmul_(a[t + 1], x[t + 1])
        torch.mul(p[t + 1], a[t + 1], out=p[t])
    entries = []
    firsts = (reversed(tensor[0].unbind()) for tensor in (x, p, a))
    for first, product, rate in zip(*firsts, strict=True):
        entries.append(later)
        later = torch.addcmul(first, product, later).mul_(rate)
    g.addcmul_(products, torch.stack(entries[::-1]))
    return later


# --- the step size ----------------------------------------------------------------------------------------------------


def _step_size(scan: Scan, segment: _Segment, like: Tensor) -> Tensor:
    """Step sizes before the softplus, as scanned, (length, groups, b, 1 or K, d), to be overwritten.

    A zero token's is its bias.
    """
    weight, bias = scan.dt_weight, scan.delta_bias
    routes = scan.routes
    if segment.tokens is None or scan.by_step:
        # what all routes share is computed once
        routes = max(1 if x is None else x.shape[axis] for x, axis in ((scan.delta, 2), (weight, 0), (bias, 0)))
    rows = _take(scan.delta, segment, scan.by_step, routes, like, "delta")
    z = _scratch.get("z", (*rows.shape[:-1], scan.channels), like)
    if weight is None:
        return z.copy_(rows) if bias is None else torch.add(rows, bias, out=z)
    for r in range(routes):
        # one product per route, written where the route's rows lie
        factors = rows[..., r, :].reshape(-1, rows.shape[-1]), _route(weight, r).to(like.dtype).T
        target = z.view(-1, routes, scan.channels)[:, r]
        if bias is None:
            torch.mm(*factors, out=target)
        else:
            torch.addmm(_route(bias, r), *factors, out=target)
    return z


def _step_size_backward(dz: Tensor, ddelta: Tensor, dweight: Tensor | None, scan: Scan, segment: _Segment) -> None:
    """Add the gradients of delta and dt_weight, given that of the step sizes before the softplus."""
    weight = scan.dt_weight
    if weight is None or dweight is None:
        _put(ddelta, dz, segment, scan.by_step)
        return
    K = dz.shape[3]
    rows = _take(scan.delta, segment, scan.by_step, K, dz, "delta")
    drows = dz.new_empty(rows.shape)
    for r in range(K):
        dz_route = dz[..., r, :].reshape(-1, dz.shape[-1])
        torch.mm(dz_route, _route(weight, r).to(dz.dtype), out=drows.view(-1, K, rows.shape[-1])[:, r])
        _route(dweight, r).addmm_(dz_route.T, rows[..., r, :].reshape(-1, rows.shape[-1]))
    _put(ddelta, drows, segment, scan.by_step)


def _route(x: Tensor, k: int) -> Tensor:
    return x[k if x.shape[0] > 1 else 0]


def _softplus_(z: Tensor) -> Tensor:
    """log(1 + e^z), linear above 20, in place; on a CPU several times the library's speed, to the last bit or two."""
    if z.device.type != "cpu":
        return F.softplus(z)
    e, w, lost = (_scratch.get(name, z.shape, z) for name in ("y", "input", "decay"))
    torch.clamp(z, max=20, out=e).exp_()
    torch.add(e, 1, out=w)
    e.sub_(torch.sub(w, 1, out=lost)).div_(w)  # what the sum lost, to first order
    return torch.maximum(w.log_().add_(e), z, out=z)


BACKEND = Backend("portable", None, lambda device, dtype: None, forward, backward, states_shape)
