"""NVIDIA machine code of compute capability 9.0 as nvdisasm prints it: instructions, what ptxas scheduled, loops."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from triton.backends.nvidia import compiler as nvidia

TOOLS = Path(nvidia.__file__).parent / "bin"
_CODE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s*/\* (0x[0-9a-f]+) \*/")
_CONTROL = re.compile(r"^\s*/\* (0x[0-9a-f]+) \*/")
_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_PREDICATE = re.compile(r"@!?U?P\w+\s+")

# pipe, clocks that it is taken by one instruction of a warp, clocks to the result (None: that of a load from memory)
_PIPES = {
    "special": (("MUFU", "I2F", "F2I", "F2F", "I2FP", "POPC", "FLO"), 8, 22),
    "float": (("FFMA", "FMUL", "FADD"), 1, 4),
    "multiply": (("IMAD", "IDP", "HFMA2", "HMUL2", "HADD2"), 2, 5),
    "load": (("LDG", "LD"), 4, None),
    "store": (("STG", "ST", "RED", "ATOMG"), 4, 20),
    "shared": (("LDS", "LDSM", "SHFL", "STS", "STSM", "LDL", "STL"), 4, 30),  # spilled registers lie in the first cache
    "matrix": (("HMMA",), 16, 33),
    "control": (("BRA", "EXIT", "BSSY", "BSYNC", "NOP", "CALL", "RET", "BREAK"), 2, 10),
    "barrier": (("BAR", "WARPSYNC", "DEPBAR", "ERRBAR", "MEMBAR"), 2, 20),
    "constant": (("LDC", "LDCU", "ULDC", "S2R", "S2UR"), 2, 30),
}
_BY_NAME = {name: (pipe, busy, latency) for pipe, (names, busy, latency) in _PIPES.items() for name in names}
_UNIT = {"load": "memory", "store": "memory", "shared": "memory", "constant": "barrier"}  # what shares a pipe


@dataclass
class Instruction:
    name: str  # with its modifiers: LDG.E.U16
    text: str
    pipe: str
    busy: int
    latency: int | None
    stall: int  # clocks before the warp's next instruction
    write: int  # scoreboard that the result releases, 7 for none
    read: int  # scoreboard that is released once the operands were read, 7 for none
    wait: int  # mask of scoreboards waited for
    table: bool = False  # reads the order table

    @property
    def operation(self) -> str:
        return self.name.split(".")[0]


def disassemble(cubin: bytes) -> str:
    """Machine code with its control words."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "nvdisasm", "-c", "-hex", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instructions(text: str) -> tuple[list[Instruction], list[tuple[int, int]]]:
    """Instructions of a kernel, and the loops among them as (first, last) positions."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    code: str | None = None
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif match := _CODE.search(line):
            code = match[2].strip()
        elif (match := _CONTROL.match(line)) and code is not None:
            found.append(_instruction(code, int(match[1], 16) >> 41))
            code = None
    loops = []
    for position, instruction in enumerate(found):
        target = re.search(r"`\((\.L_x_\d+)\)", instruction.text)
        if instruction.operation == "BRA" and target and labels.get(target[1], len(found)) <= position:
            loops.append((labels[target[1]], position))
    return found, loops


def _instruction(text: str, control: int) -> Instruction:
    name = _PREDICATE.sub("", text).split()[0].rstrip(",")
    operation = name.split(".")[0]
    if operation in _BY_NAME:
        pipe, busy, latency = _BY_NAME[operation]
    elif operation.startswith("U") or operation == "R2UR":
        pipe, busy, latency = "uniform", 2, 10
    else:
        pipe, busy, latency = "integer", 2, 5
    if operation == "HMMA" and "16816" not in name:
        busy = 8
    fields = (control >> shift & mask for shift, mask in ((0, 15), (5, 7), (8, 7), (11, 63)))
    return Instruction(name, text, _UNIT.get(pipe, pipe), busy, latency, *fields)


def hot_loop(cubin: bytes, walks: bool, table_loads: int) -> list[Instruction]:
    """The loop over a scan's turns, its first `table_loads` 32-bit loads marked as such of the order table.

    A loop within it, which recomputes states, is taken to run once a turn. With `walks` one loop more lies around it.
    """
    code, loops = instructions(disassemble(cubin))
    # a loop may have several ways back to its head
    heads: dict[int, int] = {}
    for first, last in loops:
        heads[first] = max(last, heads.get(first, 0))
    long = sorted(((last - first, first, last) for first, last in heads.items() if last - first > 50), reverse=True)
    if not long:
        raise ValueError("the machine code has no loop over turns")
    _, first, last = long[1 if walks and len(long) > 1 else 0]
    body = code[first : last + 1]
    for load in [i for i in body if i.name in ("LDG.E", "LDG.E.CONSTANT")][:table_loads]:
        load.table = True
    return body
