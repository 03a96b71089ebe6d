"""The native backend: what the library is given, member by member as scan.h lays it out."""

import torch
from torch import Tensor

from ..native.calling import (
    DTYPES,
    TOLD_FROM,
    call,
    contiguous_channels,
    members,
    parameter,
    pointer,
    strides,
    unavailable,
)
from ..tables import check_table
from .backend import Backend
from .contract import Scan

_CHUNK = 32  # steps; as in scan.h


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `Backend` says; what is saved are the states at the chunks' starts, (b, K, chunks, N, d)."""
    out = scan.u.new_empty(scan.out_shape, dtype=torch.float32)
    last = scan.u.new_empty(scan.state_shape, dtype=torch.float32) if scan.last_state else None
    states = scan.u.new_empty(states_shape(scan), dtype=torch.float32) if save else None
    arguments, kept = _scan(scan, out, last, states)
    call("scan", arguments)
    del kept
    return out.to(scan.out_dtype), last, states


def backward(grad: Tensor, grad_last: Tensor | None, states: Tensor, scan: Scan) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    arguments, kept = _scan(scan, None, None, states.contiguous())
    grad = contiguous_channels(grad)
    if grad_last is not None:
        grad_last = grad_last.float().contiguous()
    grads = [None if t is None else t.new_empty(t.shape, dtype=torch.float32) for t in scan.tensors]
    pointers = [pointer(g) for g in grads]
    routes = [0 if t is None else t.shape[2 if t.ndim == 4 else 0] for t in scan.tensors[:-1]]
    given = members(*_rows(grad, scan.out == "sum"), pointer(grad_last), *pointers, *routes)
    call("scan_backward", arguments, given)
    del kept
    return tuple(None if g is None or t is None else g.to(t.dtype) for g, t in zip(grads, scan.tensors, strict=True))


def states_shape(scan: Scan) -> tuple[int, ...]:
    """As `Backend` says."""
    return scan.batch, scan.routes, (scan.steps + _CHUNK - 1) // _CHUNK, scan.states, scan.channels


BACKEND = Backend("native", ("cpu",), unavailable, forward, backward, states_shape, TOLD_FROM)


def _scan(scan: Scan, out: Tensor | None, last: Tensor | None, states: Tensor | None):
    """A `struct scan`, and the tensors that must live as long as it is used."""
    u, delta, B, C = (None if x is None else contiguous_channels(x) for x in (scan.u, scan.delta, scan.B, scan.C))
    order, initial = scan.order, scan.initial_state
    permuted = True  # every route visits every token once
    if order is not None:
        facts = check_table(order, scan.num_tokens)
        permuted = facts.full and not facts.repeats
        order = order.contiguous()
    initial = None if initial is None else initial.contiguous()
    weight = scan.dt_weight
    summed = scan.out == "sum"
    values = members(
        scan.batch,
        scan.num_tokens,
        scan.steps,
        scan.routes,
        scan.channels,
        scan.states,
        0 if weight is None else weight.shape[2],
        scan.u_by_step,
        scan.by_step,
        scan.out == "step",
        scan.softplus,
        permuted,
        order is not None and order.dtype == torch.int64,
        pointer(order),
        *_rows(u),
        *_rows(delta),
        *_rows(B),
        *_rows(C),
        *parameter(scan.A),
        *parameter(scan.D),
        *parameter(scan.delta_bias),
        pointer(weight),
        *((0,) * 4 if weight is None else (DTYPES[weight.dtype], *strides(weight, 0))),
        pointer(initial),
        pointer(out),
        *((0,) * 3 if out is None else _rows(out, summed)[1:4]),
        pointer(last),
        pointer(states),
        torch.get_num_threads(),
    )
    return values, (u, delta, B, C, order, initial)


def _rows(x: Tensor | None, summed: bool = False) -> tuple[int, ...]:
    """A `struct rows`."""
    if x is None:
        return (0,) * 5
    batch, step, route = (*x.stride()[:2], 0) if summed else strides(x, 2)[:3]
    return x.data_ptr(), batch, step, route, DTYPES.get(x.dtype, -1)
