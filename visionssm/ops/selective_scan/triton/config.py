"""Sizes of blocks, turns and segments, by rule: tuning at run time would break CUDA graphs and cost seconds per shape.

The rules follow the instruction and register counts of compiled code (benchmarks/results/kernel_resources.md).
"""

import os
from functools import cache
from typing import NamedTuple

import torch

CHUNK_SINGLE = 8  # steps between two saved states with one state per channel: half a byte per element and route
CHUNK_MULTI = 64  # with several: N / 16 bytes
LOW_MEMORY = os.environ.get("VISIONSSM_LOW_MEMORY") == "1"  # no output per route, where there is work enough
LANES = 64 if torch.version.hip else 32  # threads of a warp; fewer channels would leave some idle
WARPS_PER_SM = 16  # up to which more warps hide more of the loads' latency; registers leave room for 8 to 19
SEGMENT = 128  # a sequence is not split into segments shorter than this
SHORT_SEGMENT = 64  # nor, where there would be fewer than two warps for a multiprocessor, than this
# instructions per step and channel, by channels of a program with one state each
_FORWARD = {32: 39, 64: 27}
_BACKWARD = {32: 80, 64: 61}  # 83 counted, but with 16 warps on a multiprocessor where 64 channels leave room for 8


class Blocks(NamedTuple):
    channels: int  # channels of one program
    turn: int  # steps of one turn of its loop, unrolled
    warps: int


def in_lanes(states: int) -> bool:
    """Whether a lane holds all states of its channel; else the states of some channels form a tile."""
    return states <= 16


def chunk(states: int) -> int:
    """Steps between two saved states."""
    return CHUNK_SINGLE if states == 1 else CHUNK_MULTI


def forward_blocks(channels: int, states: int, rank: int, dtype: torch.dtype) -> Blocks:
    """Blocks of the forward scan; `dtype` is that of the products of a low-rank delta."""
    half = dtype.itemsize == 2
    if states == 1:
        wide = half and channels % 128 == 0 and channels >= 384 and rank <= 32
        # of four bytes an element, a turn of more channels would spill registers
        block = 128 if wide else _least_work(channels, _FORWARD) if half else LANES
        return Blocks(block, 8 if half and rank > 32 else 16, 1)  # larger weights leave no registers for 16 steps
    if in_lanes(states):
        return Blocks(64 if half and channels % 64 == 0 else LANES, 4, 1)
    block = min(64, max(16, (1024 if half else 512 if rank <= 32 else 256) // (1 << (states - 1).bit_length())))
    return Blocks(_cut(channels, block), 4, 1)


def prefetch(states: int, blocks: Blocks, programs: int, walk: int, multiprocessors: int) -> bool:
    """Whether the forward scan fetches the next turn's rows before it scans this one's.

    Worth its registers, with which eight warps fit on a multiprocessor, where there are no more.
    """
    return walk == 1 and states == 1 and blocks.channels <= 64 and programs <= 8 * multiprocessors


def backward_blocks(channels: int, states: int, rank: int, dtype: torch.dtype) -> Blocks:
    """Blocks of the backward scan: a turn's states are kept in registers, so turns are shorter."""
    if states == 1:
        small = dtype.itemsize > 2 and rank > 16  # else registers spill
        return Blocks(LANES if small else _least_work(channels, _BACKWARD), 8, 1)
    if in_lanes(states):
        return Blocks(LANES, 4, 1)
    return Blocks(16, 4, 1)


def registers_are_short(states: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the backward scan reads B and C, of this dtype, again at each step, so that 16 states do not spill.

    With two bytes an element a turn's rows fit too where code is compiled for Hopper; for GPUs before it they do not.
    """
    return states > 8 and (dtype.itemsize > 2 or not _from_hopper_on(device))


def segments(programs: int, warps: int, steps: int, multiprocessors: int) -> int:
    """Parts to split a sequence into, so that the warps fill the device; 1 where they do, or where it is too short.

    A split is worth a second pass only where it makes at least four times the warps.
    """
    have, want = programs * warps, WARPS_PER_SM * multiprocessors
    if 4 * have > want:
        return 1
    shortest = SHORT_SEGMENT if have < 2 * multiprocessors else SEGMENT
    return max(1, min(want // have, steps // shortest))


def routes_per_program(routes: int, channels: int, programs: int, warps: int, multiprocessors: int) -> int:
    """Routes that one program walks, so that their sum never exists per route; `programs` counts one route each.

    One, unless memory is short: a walk waits for what those before it wrote, and can take three times as long. Then
    as many as divide the routes and leave the device enough warps. Rows of other channels than multiples of eight are
    read element by element, which leaves no registers for sums.
    """
    return 1 if channels % 8 or not LOW_MEMORY else _walk(routes, programs, warps, multiprocessors)


def blocks_per_program(blocks: int, states: int, rank: int, programs: int, warps: int, multiprocessors: int) -> int:
    """Blocks of channels that one program of the backward scan walks; `programs` counts one block each.

    With several states: a program of one has few channels, and its sums over them are as large as the channels. The
    weights of larger ranks leave no registers for it.
    """
    if states == 1 or rank > 16:
        return 1
    return _walk(blocks, programs, warps, multiprocessors)


def rules() -> tuple:
    """The rules of this module as they are now, to tell whether what was planned by them still holds."""
    sizes = CHUNK_SINGLE, CHUNK_MULTI, LOW_MEMORY, LANES, WARPS_PER_SM, SEGMENT, SHORT_SEGMENT
    blocks = forward_blocks, backward_blocks, routes_per_program, blocks_per_program, _walk
    return *sizes, *blocks, prefetch, segments, registers_are_short, multiprocessors


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a device; 1 for the interpreter on a CPU, which has nothing to fill."""
    return _cuda_multiprocessors(device.index) if device.type == "cuda" else 1


def _from_hopper_on(device: torch.device) -> bool:
    return device.type != "cuda" or torch.version.hip is not None or _capability(device.index) >= (9, 0)


@cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


@cache
def _cuda_multiprocessors(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def _walk(parts: int, programs: int, warps: int, multiprocessors: int) -> int:
    """The largest divisor of `parts` by which programs may become fewer."""
    have, want = programs * warps, WARPS_PER_SM * multiprocessors
    return max((n for n in range(1, parts + 1) if parts % n == 0 and have // n >= want), default=1)


def _least_work(channels: int, instructions: dict[int, int]) -> int:
    """The block with the fewest instructions in all, idle lanes included; the smaller of equals, for more warps."""
    blocks = [block for block in instructions if block >= LANES]
    return min(blocks, key=lambda block: -(-channels // block) * block * instructions[block])


def _cut(channels: int, block: int) -> int:
    """`block`, or the power of two from 32 on that just holds fewer channels."""
    power = 1 << (channels - 1).bit_length()
    return min(block, max(min(block, 32), power))
