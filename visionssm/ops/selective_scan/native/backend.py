"""The native backend: what the library is given, member by member as scan.h lays it out."""

import ctypes
import os

import torch
from torch import Tensor

from ...tables import check_table
from ..backend import Backend
from ..contract import Scan
from . import loading

_CHUNK = 32  # steps; as in scan.h
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def unavailable(device: str, dtype: torch.dtype) -> str | None:
    """Why the library cannot run on a type of device, or None if it can."""
    if device != "cpu":
        return "it runs on CPUs only"
    if dtype == torch.float64:
        return "it takes float32, bfloat16 and float16, not float64"
    return loading.MISSING


def forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `Backend` says; what is saved are the states at the chunks' starts, (b, K, chunks, N, d)."""
    out = scan.u.new_empty(scan.out_shape, dtype=torch.float32)
    last = scan.u.new_empty(scan.state_shape, dtype=torch.float32) if scan.last_state else None
    states = scan.u.new_empty(states_shape(scan), dtype=torch.float32) if save else None
    arguments, kept = _scan(scan, out, last, states)
    _run(loading.LIBRARY_LOADED.visionssm_scan, arguments)
    del kept
    return out.to(scan.out_dtype), last, states


def backward(grad: Tensor, grad_last: Tensor | None, states: Tensor, scan: Scan) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    arguments, kept = _scan(scan, None, None, states.contiguous())
    grad = _contiguous_channels(grad)
    if grad_last is not None:
        grad_last = grad_last.float().contiguous()
    grads = [None if t is None else t.new_empty(t.shape, dtype=torch.float32) for t in scan.tensors]
    pointers = [_pointer(g) for g in grads]
    routes = [0 if t is None else t.shape[2 if t.ndim == 4 else 0] for t in scan.tensors[:-1]]
    given = _members(*_rows(grad, scan.out == "sum"), _pointer(grad_last), *pointers, *routes)
    _run(loading.LIBRARY_LOADED.visionssm_scan_backward, arguments, given)
    del kept
    return tuple(None if t is None else g.to(t.dtype) for g, t in zip(grads, scan.tensors, strict=True))


def states_shape(scan: Scan) -> tuple[int, ...]:
    """As `Backend` says."""
    return scan.batch, scan.routes, (scan.steps + _CHUNK - 1) // _CHUNK, scan.states, scan.channels


# smaller scans are no reason to speak: state updates of a call, from which on it is said that there is no library
_TOLD_FROM = int(os.environ.get("VISIONSSM_TOLD_FROM", 1_000_000))

BACKEND = Backend("native", ("cpu",), unavailable, forward, backward, states_shape, _TOLD_FROM)


def _run(function, *arguments) -> None:
    if function(*arguments) != 0:
        raise MemoryError("the native scan found no memory for its buffers")


def _scan(scan: Scan, out: Tensor | None, last: Tensor | None, states: Tensor | None):
    """A `struct scan`, and the tensors that must live as long as it is used."""
    u, delta, B, C = (None if x is None else _contiguous_channels(x) for x in (scan.u, scan.delta, scan.B, scan.C))
    order, initial = scan.order, scan.initial_state
    permuted = True  # every route visits every token once
    if order is not None:
        facts = check_table(order, scan.num_tokens)
        permuted = facts.full and not facts.repeats
        order = order.contiguous()
    initial = None if initial is None else initial.contiguous()
    weight = scan.dt_weight
    summed = scan.out == "sum"
    members = _members(
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
        _pointer(order),
        *_rows(u),
        *_rows(delta),
        *_rows(B),
        *_rows(C),
        *_parameter(scan.A),
        *_parameter(scan.D),
        *_parameter(scan.delta_bias),
        _pointer(weight),
        *((0,) * 4 if weight is None else (_DTYPES[weight.dtype], *_strides(weight, 0))),
        _pointer(initial),
        _pointer(out),
        *((0,) * 3 if out is None else _rows(out, summed)[1:4]),
        _pointer(last),
        _pointer(states),
        torch.get_num_threads(),
    )
    return members, (u, delta, B, C, order, initial)


def _members(*values: int):
    return (ctypes.c_int64 * len(values))(*values)


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _contiguous_channels(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _strides(x: Tensor, route_axis: int) -> tuple[int, ...]:
    """Strides in elements, 0 along a route axis that the routes share."""
    return tuple(0 if i == route_axis and x.shape[i] == 1 else s for i, s in enumerate(x.stride()))


def _rows(x: Tensor | None, summed: bool = False) -> tuple[int, ...]:
    """A `struct rows`."""
    if x is None:
        return (0,) * 5
    batch, step, route = (*x.stride()[:2], 0) if summed else _strides(x, 2)[:3]
    return x.data_ptr(), batch, step, route, _DTYPES.get(x.dtype, -1)


def _parameter(x: Tensor | None) -> tuple[int, ...]:
    """A `struct parameter`."""
    if x is None:
        return (0,) * 4
    strides = _strides(x, 0)
    return x.data_ptr(), *strides, *((0,) if len(strides) == 2 else ())
