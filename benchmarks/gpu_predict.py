"""Predict how long the scan takes on a GPU, from its compiled code; nothing is run and no GPU is needed.

    python benchmarks/gpu_predict.py --output benchmarks/results [--shapes "VMamba-T stage" Vim-S]
    python benchmarks/gpu_predict.py --shapes "stage 1" --walks 1 2 4 --warps 6 12 16

Compiles the kernels that a model's shape launches for sm_90, replays the loops of the machine code (`replay.py` says
how, and what it assumes) and adds the bytes that every other operation moves over a copy's bandwidth. `--walks` and
`--warps` predict other choices of routes per program and of warps per multiprocessor beside the rule's. Measured
figures correct the constants of `replay.py` and of the kernels' config.py.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import triton
from gpu_measure import markdown, write_results
from kernel_resources import KERNELS, TARGETS, Launch, describe, nvidia_usage, record
from machine_code import hot_loop
from replay import copy_milliseconds, milliseconds, occupancy
from scan_shapes import MODEL_SHAPES, ScanShape
from triton import knobs
from triton.compiler import ASTSource

from visionssm.ops.selective_scan.triton import config

COLUMNS = ["shape", "out", "pass", "choice", "scan_ms", "moves_ms", "total_ms", "kernels"]
REVIEWED = ("VMamba-T stage", "VMamba-T detection", "vanilla VMamba-T stage 1", "Vim-S")


@contextmanager
def choosing(walk: int | None, warps: int | None) -> Iterator[None]:
    """Plan launches for so many routes per program, or so many warps per multiprocessor; None leaves the rule."""
    routes, wanted = config.routes_per_program, config.WARPS_PER_SM
    try:
        if walk is not None:
            config.routes_per_program = lambda *_: walk
        if warps is not None:
            config.WARPS_PER_SM = warps
        yield
    finally:
        config.routes_per_program, config.WARPS_PER_SM = routes, wanted


_compiled: dict[str, tuple] = {}


def compile_scan(launch: Launch) -> tuple:
    """(loop, registers, shared memory) of a launch's code."""
    key = repr(launch[:3])
    if key not in _compiled:
        signature, constants, attributes = launch.specialisation
        source = ASTSource(KERNELS[launch.name], signature, constexprs=constants, attrs=attributes)
        compiled = triton.compile(source, target=TARGETS["sm_90"], options=launch.options)
        walks = constants.get("WALK", 1) * constants.get("SPAN", 1) > 1
        loop = hot_loop(compiled.asm["cubin"], walks, constants["TURN"] + 8)
        usage = nvidia_usage(compiled)
        _compiled[key] = loop, usage["registers"], compiled.metadata.shared
    return _compiled[key]


def predict(shape: ScanShape, dtype: torch.dtype, out: torch.dtype, choice: str = "rule") -> list[dict]:
    """A row for inference, training's forward and its backward."""
    rows = []
    for name, launches in record(shape, dtype, out, operators=True).items():
        scan = other = 0.0
        words = []
        for launch in launches:
            constants = launch.specialisation[1]
            if "TURN" not in constants:
                other += copy_milliseconds(launch.bytes * shape.batch)
                continue
            body, registers, shared = compile_scan(launch)
            walks = constants.get("WALK", 1) * constants.get("SPAN", 1)
            turns = -(-launch.steps // constants["TURN"]) * walks
            ms = milliseconds(body, launch.programs * shape.batch, turns, registers, shared)
            scan += ms
            words.append(
                f"{describe(launch.name, constants)}: {launch.programs * shape.batch} programs of {turns} turns, "
                f"{len(body)} instructions, {occupancy(registers, shared)} warps an SM, {ms:.3f} ms"
            )
        rows.append(
            {
                "shape": shape.name,
                "out": str(out).removeprefix("torch."),
                "pass": name,
                "choice": choice,
                "scan_ms": scan,
                "moves_ms": other,
                "total_ms": scan + other,
                "kernels": "; ".join(words),
            }
        )
    return rows


def totals(rows: list[dict]) -> list[dict]:
    """The four stages of VMamba-T together, pass by pass."""
    found = []
    for key in dict.fromkeys((r["out"], r["pass"], r["choice"]) for r in rows):
        stages = [
            r for r in rows if r["shape"].startswith("VMamba-T stage") and (r["out"], r["pass"], r["choice"]) == key
        ]
        if len(stages) == 4:
            sums = {c: sum(r[c] for r in stages) for c in ("scan_ms", "moves_ms", "total_ms")}
            found.append({"shape": "VMamba-T, four stages", "out": key[0], "pass": key[1], "choice": key[2]} | sums)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=list(REVIEWED), help="parts of shapes' names")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--walks", nargs="*", type=int, default=[], help="also with so many routes per program")
    parser.add_argument("--warps", nargs="*", type=int, default=[], help="also for so many warps per multiprocessor")
    parser.add_argument("--output", type=Path, help="folder for gpu_predict.json and gpu_predict.md")
    args = parser.parse_args()
    if knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET is set, so the kernels would be interpreted; unset it to compile them")
    dtype = getattr(torch, args.dtype)
    choices: dict[str, tuple[int | None, int | None]] = {"rule": (None, None)}
    choices |= {f"{n} routes": (n, None) for n in args.walks} | {f"{n} warps": (None, n) for n in args.warps}
    rows: list[dict] = []
    print(markdown([], COLUMNS))
    for shape in MODEL_SHAPES:
        if not any(part in shape.name for part in args.shapes):
            continue
        for out in dict.fromkeys((torch.float32, dtype)):
            for choice, (walk, warps) in choices.items():
                if walk and shape.order().shape[0] % walk:
                    continue
                with choosing(walk, warps):
                    new = predict(shape, dtype, out, choice)
                rows += new
                print(markdown(new, COLUMNS).split("\n", 2)[2], flush=True)
        if args.output:  # shape by shape, so that nothing is lost
            env = {"command": "python " + " ".join(sys.argv), "torch": torch.__version__, "triton": triton.__version__}
            title = "What the scan on an H200 is predicted to take"
            write_results(args.output, "gpu_predict", title, env, [*totals(rows), *rows], COLUMNS)
    if sums := totals(rows):
        print(markdown(sums, COLUMNS).split("\n", 2)[2])


if __name__ == "__main__":
    main()
