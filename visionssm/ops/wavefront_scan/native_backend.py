"""The native backend: what the library is given, member by member as wavefront.h lays it out."""

from math import isqrt

import torch
from torch import Tensor

from ..native.calling import DTYPES, TOLD_FROM, call, contiguous_channels, members, parameter, pointer, unavailable
from .backend import Backend
from .contract import Wavefront


def forward(scan: Wavefront, save: bool) -> tuple[Tensor, Tensor | None]:
    """As `Backend` says; what is saved are the rows of states above the segments, (b, segments, W, N, d)."""
    out = scan.x.new_empty(scan.x.shape, dtype=torch.float32)
    states = scan.x.new_empty(states_shape(scan), dtype=torch.float32) if save else None
    arguments, kept = _scan(scan, out, states)
    call("wavefront", arguments)
    del kept
    return out.to(scan.x.dtype), states


def backward(grad: Tensor, states: Tensor, scan: Wavefront) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    arguments, kept = _scan(scan, None, states.contiguous())
    grad = contiguous_channels(grad)
    grads = [None if t is None else t.new_empty(t.shape, dtype=torch.float32) for t in scan]
    call("wavefront_backward", arguments, members(*_map(grad), *map(pointer, grads)))
    del kept
    return tuple(None if g is None or t is None else g.to(t.dtype) for g, t in zip(grads, scan, strict=True))


def states_shape(scan: Wavefront) -> tuple[int, ...]:
    """As `Backend` says."""
    b, height, width, d = scan.x.shape
    segment = _segment(height)
    return b, (height + segment - 1) // segment, width, scan.states, d


BACKEND = Backend("native", ("cpu",), unavailable, forward, backward, states_shape, TOLD_FROM)


def _segment(height: int) -> int:
    """Rows of a segment: about as many rows of states are kept as are recomputed at a time."""
    return isqrt(height - 1) + 1


def _scan(scan: Wavefront, out: Tensor | None, states: Tensor | None):
    """A `struct wavefront`, and the tensors that must live as long as it is used."""
    b, height, width, d = scan.x.shape
    maps = [contiguous_channels(t) for t in (scan.x, scan.delta_top, scan.delta_left, scan.B_top, scan.B_left, scan.C)]
    values = members(
        b,
        height,
        width,
        d,
        scan.states,
        _segment(height),
        *(member for t in maps for member in _map(t)),
        *(member for t in (scan.A_top, scan.A_left, scan.D) for member in parameter(None if t is None else t[None])),
        pointer(out),
        pointer(states),
        torch.get_num_threads(),
    )
    return values, (maps, states)


def _map(x: Tensor) -> tuple[int, ...]:
    """A `struct map`."""
    return x.data_ptr(), *x.stride()[:3], DTYPES[x.dtype]
