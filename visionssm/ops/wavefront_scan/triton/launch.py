"""The host's side: buffers, tiles, grids."""

from math import isqrt
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..contract import Wavefront
from .kernels import wavefront_bwd_kernel, wavefront_fwd_kernel

# numbers in a tile of states: the backward spills two to six registers with so many (on Hopper), but with half of them,
# and so of the channels of a block, there would be twice as many shares of dB and dC, which take more memory than all
# maps together
_TILE = 4096
_WARPS = 8


class _Sizes(NamedTuple):
    rows: int
    states: int
    block: int  # channels of a program
    blocks: int
    segment: int  # anti-diagonals between which states are kept
    segments: int


def forward(scan: Wavefront, save: bool) -> tuple[Tensor, Tensor | None]:
    """As `Backend` says; what is saved are the states before every segment of anti-diagonals.

    Raises:
        ValueError: offsets within an image would need more than 32 bits.
    """
    _check_size(scan)
    scan = _contiguous(scan)
    y = scan.x.new_empty(scan.x.shape)
    states = scan.x.new_empty(states_shape(scan), dtype=torch.float32) if save else None
    with torch.cuda.device_of(scan.x):
        wavefront_fwd_kernel[_grid(scan)](*scan, y, states, **_arguments(scan))
    return y, states


def backward(grad: Tensor, states: Tensor, scan: Wavefront) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    scan = _contiguous(scan)
    b, height, width, d = scan.x.shape
    n, sizes = scan.states, _sizes(scan)

    def empty(*shape: int) -> Tensor:
        return scan.x.new_empty(shape, dtype=torch.float32)

    scratch = empty(b, sizes.segment, height, d, n)
    maps = [scan.x.new_empty(scan.x.shape, dtype=t.dtype) for t in (scan.x, scan.delta_top, scan.delta_left)]
    rates = [empty(b, d, n) for _ in range(2)]
    projections = [empty(sizes.blocks, b, height, width, n) for _ in range(3)]
    skip = None if scan.D is None else empty(b, d)
    with torch.cuda.device_of(scan.x):
        wavefront_bwd_kernel[_grid(scan)](
            grad.contiguous(), *scan, states, scratch, *maps, *rates, *projections, skip, **_arguments(scan)
        )
    sums = *(g.sum(0) for g in rates), *(g.sum(0) for g in projections), None if skip is None else skip.sum(0)
    grads = *maps, *sums
    return tuple(None if g is None else g.to(t.dtype) for g, t in zip(grads, scan, strict=True))


def states_shape(scan: Wavefront) -> tuple[int, ...]:
    """Shape of the states that `forward` saves: (b, segments, H, d, N)."""
    b, height, _, d = scan.x.shape
    return b, _sizes(scan).segments, height, d, scan.states


def _contiguous(scan: Wavefront) -> Wavefront:
    return Wavefront(*(None if t is None else t.contiguous() for t in scan))


def _sizes(scan: Wavefront) -> _Sizes:
    _, height, width, d = scan.x.shape
    rows, states = triton.next_power_of_2(max(height, 2)), triton.next_power_of_2(scan.states)
    block = max(1, min(triton.next_power_of_2(d), _TILE // (rows * states)))
    count = height + width - 1
    segment = isqrt(count - 1) + 1  # about as many states kept as recomputed at a time
    return _Sizes(rows, states, block, -(-d // block), segment, -(-count // segment))


def _check_size(scan: Wavefront) -> None:
    _, height, width, d = scan.x.shape
    n, sizes = scan.states, _sizes(scan)
    if max(height * width * max(d, n), max(sizes.segment, sizes.segments) * height * d * n) >= 2**31:
        raise ValueError(
            f"a map of {height} x {width} x {d} with {n} states is too large for the Triton kernels, whose offsets "
            "have 32 bits; scan smaller crops, or choose backend='portable'"
        )


def _grid(scan: Wavefront) -> tuple[int, int]:
    return scan.x.shape[0], _sizes(scan).blocks


def _arguments(scan: Wavefront) -> dict[str, int]:
    sizes = _sizes(scan)
    return dict(
        HEIGHT=scan.x.shape[1],
        WIDTH=scan.x.shape[2],
        SEGMENT=sizes.segment,
        segments=sizes.segments,
        CHANNELS=scan.x.shape[3],
        N=scan.states,
        STATES=sizes.states,
        ROWS=sizes.rows,
        BLOCK=sizes.block,
        num_warps=_WARPS,
    )
