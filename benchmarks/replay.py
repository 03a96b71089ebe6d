"""A model of a GPU's multiprocessor that replays a loop of machine code, to say how long a kernel would take.

One of the four parts of a multiprocessor issues one instruction of one of its warps a clock. Each instruction waits for
what ptxas scheduled (its stall counts and scoreboards) and for its pipe. Assumed, not measured: 132 multiprocessors at
1.75 GHz; a warp's instruction takes integer and IMAD pipes 2 clocks, float 1, special functions 8, the load/store unit,
shared by the four parts, 4; rows arrive after 600 clocks, entries of the order table after 100.

Not modelled: what comes before and after the loop, misses of the instruction cache, saturation of memory. It has never
been compared with a card: believe ratios within some 20 %, times within some 40 %.
"""

import heapq
import math
from collections import Counter

from machine_code import Instruction

MULTIPROCESSORS = 132
CLOCK = 1.75e9  # 1/s
ROW_CLOCKS, TABLE_CLOCKS = 600, 100  # until a load's data are there
BANDWIDTH = 4.3e12  # bytes/s read and written by a copy
_TURNS = 6  # replayed for each warp


def clocks_per_turn(body: list[Instruction], warps: int) -> float:
    """Clocks in which `warps` warps of one part each do one turn of the loop."""
    free: Counter[str] = Counter()  # when each pipe takes its next instruction
    position, turn, ready = [0] * warps, [0] * warps, [97 * w for w in range(warps)]
    boards: list[list[list[int]]] = [[[] for _ in range(6)] for _ in range(warps)]
    running, last, clock = set(range(warps)), 0, 0
    while running:
        chosen, soonest = None, math.inf
        for offset in range(warps):
            w = (last + offset) % warps
            if w not in running:
                continue
            if ready[w] > clock:
                soonest = min(soonest, ready[w])
                continue
            instruction = body[position[w]]
            blocked = 0
            for board in range(6):
                if instruction.wait >> board & 1:
                    pending = boards[w][board]
                    while pending and pending[0] <= clock:
                        heapq.heappop(pending)
                    if pending:
                        blocked = max(blocked, max(pending))
            blocked = max(blocked, free[instruction.pipe])
            if blocked > clock:
                soonest = min(soonest, blocked)
                continue
            chosen = w
            break
        if chosen is None:
            clock = max(clock + 1, int(soonest))
            continue
        instruction = body[position[chosen]]
        free[instruction.pipe] = clock + instruction.busy
        latency = instruction.latency
        if latency is None:
            latency = TABLE_CLOCKS if instruction.table else ROW_CLOCKS
        if instruction.write != 7:
            heapq.heappush(boards[chosen][instruction.write], clock + latency)
        if instruction.read != 7:
            heapq.heappush(boards[chosen][instruction.read], clock + (15 if instruction.pipe == "memory" else 8))
        ready[chosen] = clock + max(1, instruction.stall)
        position[chosen] += 1
        if position[chosen] == len(body):
            position[chosen] = 0
            turn[chosen] += 1
            if turn[chosen] == _TURNS:
                running.discard(chosen)
        last = chosen
        clock += 1
    return clock / _TURNS


def occupancy(registers: int, shared: int) -> int:
    """Programs of one warp that one multiprocessor holds."""
    return min(65536 // (-(-registers // 8) * 8 * 32), 32, 227 * 1024 // (shared + 1024))


def milliseconds(body: list[Instruction], programs: int, turns: int, registers: int, shared: int) -> float:
    """Time of a kernel whose programs, of one warp, each do so many turns of the loop."""
    held = occupancy(registers, shared)
    resident = min(held, math.ceil(programs / MULTIPROCESSORS))
    turn = clocks_per_turn(body, max(1, math.ceil(resident / 4)))
    clocks = turns * turn
    if programs > held * MULTIPROCESSORS:  # several waves: what one part gets through
        warps = max(1, held // 4)
        rate = warps / clocks_per_turn(body, warps)
        clocks = max(clocks, programs * turns / (MULTIPROCESSORS * 4) / rate)
    return clocks / CLOCK * 1e3


def copy_milliseconds(count: float) -> float:
    """Time of a kernel that moves so many bytes and does little else."""
    return count / BANDWIDTH * 1e3
