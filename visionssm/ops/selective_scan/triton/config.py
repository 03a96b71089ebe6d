"""Sizes of blocks, turns and segments, by rule: tuning at run time would break CUDA graphs and cost seconds per shape.

The rules follow the instruction and register counts of compiled code (benchmarks/results/kernel_resources.md).
"""

from functools import cache
from typing import NamedTuple

import torch

CHUNK_SINGLE = 8  # steps between two saved states with one state per channel: half a byte per element and route
CHUNK_MULTI = 64  # with several: N / 16 bytes
SEGMENT = 256  # a sequence is not split into segments shorter than this
_WARPS_PER_SM = 6  # what the scan needs to hide the latency of its loads at half rate
_WALKING_WARPS_PER_SM = 4  # the least that programs of several routes may leave
_INSTRUCTIONS = {32: 44, 64: 33}  # per step and channel, by channels of a program with one state each


class Blocks(NamedTuple):
    channels: int  # channels of one program
    turn: int  # steps of one turn of its loop, unrolled
    warps: int


def chunk(states: int) -> int:
    """Steps between two saved states."""
    return CHUNK_SINGLE if states == 1 else CHUNK_MULTI


def forward_blocks(channels: int, states: int, rank: int, dtype: torch.dtype) -> Blocks:
    """Blocks of the forward scan; `states` is a power of two, `dtype` that of the products of a low-rank delta."""
    half = dtype.itemsize == 2
    if states == 1:
        wide = half and channels % 128 == 0 and channels >= 384 and rank <= 32
        return Blocks(128 if wide else 32 if not half and rank > 8 else _least_work(channels), 16, 1)
    block = min(64, max(16, (1024 if half else 512 if rank <= 32 else 256) // states))
    return Blocks(_cut(channels, block), 8 if states <= 16 else 4, 1)


def forward_turn(blocks: Blocks, states: int, walk: int) -> int:
    """Steps of a turn where programs walk `walk` routes: sums of earlier routes leave no registers for eight."""
    return 4 if walk > 1 and states > 8 else blocks.turn


def backward_blocks(channels: int, states: int, rank: int, dtype: torch.dtype) -> Blocks:
    """Blocks of the backward scan: a turn's states are kept in registers, so turns are shorter."""
    if states == 1:
        small = ranks_inside(states, rank, dtype) or (dtype.itemsize > 2 and rank > 16)  # else registers spill
        return Blocks(32 if small else _least_work(channels), 8, 1)
    return Blocks(_cut(channels, min(64, max(16, 256 // states))), 4, 1)


def ranks_inside(states: int, rank: int, dtype: torch.dtype) -> bool:
    """Whether the backward scan also takes the gradients of a low-rank delta and its weight.

    Else it writes the gradient of the raw step size, and two matrix products read it: where the channel blocks' shares
    would be larger than that, or where products in float32 would cost more than they save.
    """
    return states == 1 and 0 < rank <= 16 and dtype == torch.bfloat16


def segments(programs: int, warps: int, steps: int, multiprocessors: int) -> int:
    """Parts to split a sequence into, so that the warps fill the device; 1 where they do, or where it is too short."""
    have, want = programs * warps, _WARPS_PER_SM * multiprocessors
    if 2 * have >= want:
        return 1
    return max(1, min(want // have, steps // SEGMENT))


def routes_per_program(routes: int, channels: int, programs: int, warps: int, multiprocessors: int) -> int:
    """Routes that one program walks, so that their sum never exists per route; `programs` counts one route each.

    As many as divide the routes and leave the device enough warps. Rows of other channels than multiples of eight are
    read element by element, which leaves no registers for sums.
    """
    return 1 if channels % 8 else _walk(routes, programs, warps, multiprocessors)


def blocks_per_program(blocks: int, states: int, rank: int, programs: int, warps: int, multiprocessors: int) -> int:
    """Blocks of channels that one program of the backward scan walks; `programs` counts one block each.

    With several states: a program of one has few channels, and its sums over them are as large as the channels. The
    weights of larger ranks leave no registers for it.
    """
    if states == 1 or rank > 16:
        return 1
    return _walk(blocks, programs, warps, multiprocessors)


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a device; 1 for the interpreter on a CPU, which has nothing to fill."""
    return _cuda_multiprocessors(device.index) if device.type == "cuda" else 1


@cache
def _cuda_multiprocessors(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def _walk(parts: int, programs: int, warps: int, multiprocessors: int) -> int:
    """The largest divisor of `parts` by which programs may become fewer."""
    have, want = programs * warps, _WALKING_WARPS_PER_SM * multiprocessors
    return max((n for n in range(1, parts + 1) if parts % n == 0 and have // n >= want), default=1)


def _least_work(channels: int) -> int:
    """The block with the fewest instructions in all, idle lanes included; the smaller of equals, for more warps."""
    return min(_INSTRUCTIONS, key=lambda block: -(-channels // block) * block * _INSTRUCTIONS[block])


def _cut(channels: int, block: int) -> int:
    """`block`, or the power of two from 32 on that just holds fewer channels."""
    power = 1 << (channels - 1).bit_length()
    return min(block, max(min(block, 32), power))
