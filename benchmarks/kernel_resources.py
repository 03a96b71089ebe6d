"""Compile the Triton kernels ahead of time, for GPUs that need not be here, and list what they use.

    python benchmarks/kernel_resources.py [--shapes VMamba] [--targets sm_90] [--dtypes float32] [--output FOLDER]

Writes kernel_resources.json and kernel_resources.md: registers, spilled bytes, shared memory, instructions and
special-function instructions (MUFU) of every kernel that a model's shape launches, forward and backward: of the scan,
with the output in float32, as the models ask for, and in the inputs' dtype; of the causal convolution with SiLU; of the
wavefront scan. Fails if a kernel does not compile for an NVIDIA
target, or spills more registers there than `ALLOWED`. Nothing is run and nothing is timed.
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from machine_code import TOOLS, disassemble, instructions
from scan_shapes import CONVOLVED, MODEL_SHAPES, WAVEFRONT_SHAPES, ScanShape, make_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from visionssm.ops import conv_triton
from visionssm.ops.conv_backend import Conv
from visionssm.ops.selective_scan import contract
from visionssm.ops.selective_scan.triton import config, launch
from visionssm.ops.wavefront_scan.contract import Wavefront
from visionssm.ops.wavefront_scan.triton import launch as wavefront

TARGETS = {
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_80": GPUTarget("cuda", 80, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SCAN_KERNELS = (
    "lanes_fwd_kernel",
    "lanes_bwd_kernel",
    "selective_scan_fwd_kernel",
    "selective_scan_bwd_kernel",
    "join_segments_kernel",
    "merge_routes_kernel",
    "gather_sum_kernel",
    "sum_shares_kernel",
)
CONV_KERNELS = ("causal_conv1d_fwd_kernel", "causal_conv1d_parameters_kernel", "causal_conv1d_input_kernel")
WAVEFRONT_KERNELS = ("wavefront_fwd_kernel", "wavefront_bwd_kernel")
KERNELS = {
    name: getattr(module, name)
    for module, names in ((launch, SCAN_KERNELS), (conv_triton, CONV_KERNELS), (wavefront, WAVEFRONT_KERNELS))
    for name in names
}
MULTIPROCESSORS = 132  # of the GPU that launches are planned for, an H100 or H200
# bytes that kernels spill because smaller blocks or shorter turns would cost more, as benchmarks/README.md says
ALLOWED = {"wavefront_bwd": 128, "lanes_fwd 64 x 4": 24, "lanes_bwd 32 x 4": 104}
# four bytes an element, and up to 48 ranks whose weights stay in registers
ALLOWED_IN_FLOAT32 = ALLOWED | {"lanes_fwd 32 x 16": 24, "lanes_fwd 32 x 4": 544, "lanes_bwd 32 x 4": 568}
_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}


class Launch(NamedTuple):
    """What a launch would compile, and the sizes that its time depends on; of one image."""

    name: str
    specialisation: tuple[dict, dict, dict]  # as `specialise` says
    options: dict
    programs: int
    steps: int  # of one program's sequence; 0 for kernels that scan nothing
    bytes: int  # of all tensors that it is given


class Recorder:
    """Stands in for a kernel: keeps its launches, runs nothing."""

    def __init__(self, name: str, launches: list[Launch]) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        def launch_kernel(*args, **kwargs):
            kernel = KERNELS[self.name]
            options = {k: kwargs.pop(k) for k in ("num_warps", "num_stages", "enable_fp_fusion") if k in kwargs}
            named = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
            tensors = [v for v in named.values() if isinstance(v, torch.Tensor)]
            self.launches.append(
                Launch(
                    self.name,
                    specialise(kernel, named),
                    options,
                    math.prod(grid),
                    min(named["segment_steps"], named["steps"]) if "segment_steps" in named else 0,
                    sum(t.numel() * t.element_size() for t in tensors),
                )
            )

        return launch_kernel


def specialise(kernel, arguments: dict) -> tuple[dict, dict, dict]:
    """(signature, constants, attributes) as Triton's launcher makes them: ones fold, multiples of 16 are noted."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if (
            parameter.is_constexpr
            or value is None
            or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize)
        ):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            aligned = value.storage_offset() * value.element_size() % 16 == 0
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


class Operators(TorchDispatchMode):
    """Notes PyTorch's own operators among the launches, and computes nothing: their results have only a shape."""

    def __init__(self, launches: list[Launch] | None) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        aliases = any(a.alias_info is not None for a in func._schema.arguments)
        if aliases or "empty" in func.name() or not given:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
        out = tree_map_only(
            torch.Tensor,
            lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype),
            func(*args, **kwargs | ({"device": "meta"} if "device" in kwargs else {})),
        )
        if self.launches is not None:
            moved = sum(t.nbytes for t in (*given, *tree_leaves(out)) if isinstance(t, torch.Tensor))
            self.launches.append(Launch(func.name(), ({}, {}, {}), {}, 0, 0, moved))
        return out


@cache
def one_image(shape: ScanShape, dtype: torch.dtype) -> dict:
    return make_inputs(shape, dtype, batch=1)


def record(
    shape: ScanShape,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    parts: int | None = None,
    lanes: int = 32,
    operators: bool = False,
) -> dict[str, list[Launch]]:
    """The launches of a shape's passes by name: "inference", "forward" with states saved, "backward".

    Args:
        shape: Its batch decides how the launches are planned, though one image is given.
        dtype: Of the inputs.
        out_dtype: Of the output.
        parts: Segments that sequences are split into; None leaves that to the rule.
        lanes: Threads of a warp of the GPU that is planned for.
        operators: Note PyTorch's own operators too, which have no specialisation.
    """
    launches: list[Launch] = []
    inputs = one_image(shape._replace(batch=1), dtype)
    arguments = [inputs.get(name) for name in ("u", "delta", "A", "B", "C", "D", "delta_bias", "dt_weight", "order")]
    scan = contract.canonical(
        *arguments,
        inputs.get("num_tokens"),
        inputs.get("u_index", "token"),
        inputs.get("index", "token"),
        "sum",
        out_dtype,
    )
    segments, walk, logarithm, warp = config.segments, config._walk, launch._logarithm, config.LANES
    prefetch = config.prefetch
    try:
        config.LANES = lanes
        for name in SCAN_KERNELS:
            setattr(launch, name, Recorder(name, launches))
        config.segments = lambda programs, warps, steps, _: (
            parts or segments(programs * shape.batch, warps, steps, MULTIPROCESSORS)
        )
        config._walk = lambda count, programs, warps, _: walk(count, programs * shape.batch, warps, MULTIPROCESSORS)
        config.prefetch = lambda states, blocks, programs, walk, _: prefetch(
            states, blocks, programs * shape.batch, walk, MULTIPROCESSORS
        )
        # the inputs lie on a CPU, the code is for a GPU
        launch._logarithm = lambda s: "ptx" if logarithm(s) == "log2" else logarithm(s)
        passes = {}
        with Operators(launches if operators else None):
            launch.forward(scan, save=False)
            passes["inference"], launches[:] = launches[:], []
            out, _, states = launch.forward(scan, save=True)
            passes["forward"], launches[:] = launches[:], []
            launch.backward(out, None, states, scan)
            passes["backward"] = launches[:]
    finally:
        config.segments, config._walk, launch._logarithm, config.LANES = segments, walk, logarithm, warp
        config.prefetch = prefetch
        for name in SCAN_KERNELS:
            setattr(launch, name, KERNELS[name])
    return passes


def record_convolution(shape: ScanShape, dtype: torch.dtype) -> list[Launch]:
    """The launches of the causal convolution with SiLU before a scan, forward and backward."""
    order = shape.order()
    x = torch.empty(1, shape.tokens, 1, shape.channels, dtype=dtype)
    weight = torch.empty(len(order), shape.channels, 4, dtype=dtype)
    conv = Conv(x, weight, weight[:, :, 0].contiguous(), order, True, len(order))
    grad = torch.empty(1, order.shape[1], len(order), shape.channels, dtype=dtype)
    return _record(conv_triton, CONV_KERNELS, lambda: (conv_triton.forward(conv), conv_triton.backward(grad, conv)))


def record_wavefront(size: int, channels: int, states: int, dtype: torch.dtype) -> list[Launch]:
    """The launches of the wavefront scan of a square map, forward and backward."""
    x = torch.empty(1, size, size, channels, dtype=dtype)
    rates, rows = torch.empty(channels, states), torch.empty(1, size, size, states, dtype=dtype)
    scan = Wavefront(x, x, x, rates, rates, rows, rows, rows, torch.empty(channels))

    def call() -> None:
        wavefront.forward(scan, False)
        _, saved = wavefront.forward(scan, True)
        wavefront.backward(x, saved, scan)

    return _record(wavefront, WAVEFRONT_KERNELS, call)


def _record(module, names: tuple[str, ...], call) -> list[Launch]:
    launches: list[Launch] = []
    try:
        for name in names:
            setattr(module, name, Recorder(name, launches))
        with Operators(None):
            call()
    finally:
        for name in names:
            setattr(module, name, KERNELS[name])
    return launches


def compile_one(name: str, specialisation: tuple, options: dict, target_name: str) -> dict:
    """Compile in this process; the compiler may abort on AMD targets, so call it in another one."""
    signature, constants, attributes = specialisation
    constants = dict(constants)
    if target_name.startswith("gfx") and "LOG" in constants:  # what the launcher chooses there
        constants |= {"LOG": "log2" if constants["LOG"] == "ptx" else constants["LOG"], "PRECISION": "ieee"}
    if target_name == "sm_80" and "SHORT" in constants:  # as config.registers_are_short says there
        constants |= {"SHORT": constants["N"] > 8}
    kernel = KERNELS[name]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=TARGETS[target_name], options=options)
    usage = amd_usage(compiled) if target_name.startswith("gfx") else nvidia_usage(compiled)
    return usage | {"shared": compiled.metadata.shared, "warps": compiled.metadata.num_warps}


def nvidia_usage(compiled) -> dict:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output(TOOLS / "cuobjdump", "-res-usage", file.name)
    code, _ = instructions(disassemble(compiled.asm["cubin"]))
    count = Counter(i.operation for i in code)
    found = {k: int(v) for k, v in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": found["REG"],
        "spill": found["STACK"] + found["LOCAL"],
        "instructions": count.total() - count["NOP"],
        "mufu": count["MUFU"],
        "shuffles": count["SHFL"],
        "uniform": sum(i.pipe == "uniform" for i in code),
    }


def _output(*command) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def amd_usage(compiled) -> dict:
    text = compiled.asm["amdgcn"]

    def value(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", text)[1])

    return {
        "registers": value("vgpr_count"),
        "spill": 4 * value("vgpr_spill_count") + value("private_segment_fixed_size"),
        "instructions": len(re.findall(r"^\s+[vsdg][a-z]*_\w+", text, re.M)),
        "mufu": len(re.findall(r"^\s+v_(?:exp|log|rcp|sqrt|rsq)_f32", text, re.M)),
        "shuffles": len(re.findall(r"^\s+(?:ds_bpermute|ds_swizzle|.*dpp)", text, re.M)),
        "uniform": len(re.findall(r"^\s+v_readfirstlane", text, re.M)),
    }


class Compiler:
    """Compiles in a child process, and starts a new one where the compiler has aborted it."""

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None

    def __call__(self, *job) -> dict:
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        try:
            return self.pool.submit(compile_one, *job).result()
        except BrokenProcessPool:
            self.pool = None
            return {"error": "the compiler aborted"}
        except Exception as error:  # noqa: BLE001  whatever the compiler says goes into the table
            return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def describe(name: str, constants: dict) -> str:
    """A launch in words: which pass of the scan, and its block of channels x steps."""
    label = name.removesuffix("_kernel")
    if name in WAVEFRONT_KERNELS:
        saving = " saving states" if "fwd" in name and "saved" not in constants else ""
        return f"{label}{saving} {constants['ROWS']} x {constants['BLOCK']} x {constants['STATES']}"
    if "TURN" not in constants:
        return f"{label} {constants['BLOCK']}" if name in CONV_KERNELS else label
    if "ends" not in constants:
        task = " first pass"
    elif "fwd" in name:
        task = "" if "states" in constants else " saving states"
    else:
        task = ""
    walks = "".join(
        f", {constants[key]} {what}"
        for key, what in (("WALK", "routes"), ("SPAN", "blocks"))
        if constants.get(key, 1) > 1
    )
    return f"{label}{task} {constants['BLOCK']} x {constants['TURN']}{walks}"


def allowed(label: str, dtype: str) -> int:
    """Bytes that a kernel of this label may spill."""
    known = ALLOWED_IN_FLOAT32 if dtype.startswith("float32") else ALLOWED
    kernel, *rest = re.sub(" (saving states|first pass)", "", label).split(maxsplit=1)
    return known.get(kernel, known.get(" ".join((kernel, *rest)), 0))


def table(results: list[dict]) -> str:
    columns = ("registers", "spill", "shared", "warps", "instructions", "mufu", "shuffles", "uniform")
    lines = ["| shape | dtype | kernel | target | " + " | ".join(columns) + " |", "|" + "---|" * (4 + len(columns))]
    for r in results:
        cells = [r["error"]] + [""] * (len(columns) - 1) if "error" in r else [str(r[c]) for c in columns]
        lines.append(f"| {r['shape']} | {r['dtype']} | {r['kernel']} | {r['target']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=[""], help="parts of shapes' names (default: all)")
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16"], choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--output", type=Path, help="folder for kernel_resources.json and .md")
    args = parser.parse_args()
    if knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET is set, so the kernels would be interpreted; unset it to compile them")

    compiler, results, seen = Compiler(), [], set()

    def compile_all(shape: str, dtype: str, target: str, launches: list[Launch]) -> None:
        for name, specialisation, options, *_ in launches:
            job = name, specialisation, options, target
            if repr(job) not in seen:
                seen.add(repr(job))
                label = dict(shape=shape, dtype=dtype, target=target, kernel=describe(name, specialisation[1]))
                results.append(label | compiler(*job))
                print(table(results[-1:]).splitlines()[-1], flush=True)
        if args.output:  # again and again, so that nothing is lost
            write(args.output, results, sys.argv)

    shapes = [s for s in MODEL_SHAPES if any(part in s.name for part in args.shapes)]
    maps = {name: sizes for name, sizes in WAVEFRONT_SHAPES.items() if any(part in name for part in args.shapes)}
    for shape in shapes:
        parts = 4 if shape.batch < 128 else 1
        for dtype, out in dict.fromkeys((d, o) for d in args.dtypes for o in ("float32", d)):
            for target in args.targets:
                lanes = TARGETS[target].warp_size
                passes = record(shape, getattr(torch, dtype), getattr(torch, out), parts, lanes)
                compile_all(shape.name, f"{dtype} to {out}", target, [x for some in passes.values() for x in some])
    for dtype in args.dtypes:
        for target in args.targets:
            for shape in shapes:
                if shape.name in CONVOLVED:
                    compile_all(shape.name, dtype, target, record_convolution(shape, getattr(torch, dtype)))
            for name, sizes in maps.items():
                compile_all(name, dtype, target, record_wavefront(*sizes, getattr(torch, dtype)))
    failures = [
        f"{r['shape']} {r['dtype']} {r['kernel']} {r['target']}: {r.get('error', 'spills registers')}"
        for r in results
        if r["target"].startswith("sm_") and r.get("spill", math.inf) > allowed(r["kernel"], r["dtype"])
    ]
    if failures:
        sys.exit("FAILED\n" + "\n".join(failures))


def write(folder: Path, results: list[dict], argv: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    header = {"command": "python " + " ".join(argv), "triton": triton.__version__, "torch": torch.__version__}
    (folder / "kernel_resources.json").write_text(json.dumps(header | {"kernels": results}, indent=1) + "\n")
    (folder / "kernel_resources.md").write_text(
        "# What the Triton kernels use\n\n"
        f"Written by `{header['command']}` with Triton {header['triton']} (torch {header['torch']}).\n"
        "Compiled ahead of time; nothing was run or timed. A kernel shared by several shapes is listed at the first.\n"
        "Registers are per thread, shared memory and spills in bytes, instructions static; uniform: those that move\n"
        "addresses through the scalar registers.\n\n" + table(results) + "\n"
    )


if __name__ == "__main__":
    main()
