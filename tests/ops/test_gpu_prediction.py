"""The model of a multiprocessor that predicts times: what must hold of it whatever its constants are."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import replay  # noqa: E402
from machine_code import Instruction, instructions  # noqa: E402

# nvdisasm's lines: an instruction with the low word of its encoding, then the high word, whose bits from 41 on schedule
CODE = """
.L_x_0:
        /*0000*/                   LDG.E R2, desc[UR4][R4.64] ;       /* 0x0000000404027981 */
                                                                      /* 0x000ea2000c1e1900 */
        /*0010*/              @!P0 FFMA R3, R2, R2, R3 ;              /* 0x0000000202038223 */
                                                                      /* 0x004fe20000000003 */
        /*0020*/               @P1 BRA `(.L_x_0) ;                    /* 0xfffffffc00e41947 */
                                                                      /* 0x000fea000383ffff */
        /*0030*/                   EXIT ;                             /* 0x000000000000794d */
                                                                      /* 0x000fea0003800000 */
"""


def test_code_is_read():
    code, loops = instructions(CODE)
    assert [i.operation for i in code] == ["LDG", "FFMA", "BRA", "EXIT"] and loops == [(0, 2)]
    load, multiply, *_ = code
    assert load.latency is None and load.write == 2 and multiply.wait == 1 << 2
    assert (load.pipe, multiply.pipe) == ("memory", "float")


def floats(count: int, stall: int = 1) -> list[Instruction]:
    one = Instruction("FFMA", "FFMA", "float", 1, 4, stall, 7, 7, 0)
    return [replace(one) for _ in range(count)]


def test_one_instruction_a_clock():
    assert replay.clocks_per_turn(floats(100), 1) == pytest.approx(100)
    assert replay.clocks_per_turn(floats(100), 4) == pytest.approx(400, rel=0.01)


def test_warps_hide_stalls_and_loads():
    slow = floats(50, stall=4)
    assert replay.clocks_per_turn(slow, 4) < 1.5 * replay.clocks_per_turn(slow, 1)
    load = Instruction("LDG.E", "LDG.E", "memory", 4, None, 1, 0, 7, 0)
    waiting = [load, *floats(20)]
    waiting[1] = replace(waiting[1], wait=1)
    assert replay.clocks_per_turn(waiting, 1) == pytest.approx(replay.ROW_CLOCKS + 20, rel=0.05)
    assert replay.clocks_per_turn([replace(load, table=True), *waiting[1:]], 1) == pytest.approx(120, rel=0.1)


def test_programs_beyond_what_fits_wait():
    body = floats(100)
    assert replay.occupancy(64, 0) == 32 and replay.occupancy(255, 0) == 8 and replay.occupancy(32, 100_000) == 2
    once = replay.milliseconds(body, 8 * replay.MULTIPROCESSORS, 10, 255, 0)
    assert replay.milliseconds(body, 24 * replay.MULTIPROCESSORS, 10, 255, 0) == pytest.approx(3 * once, rel=0.05)
