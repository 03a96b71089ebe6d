"""CPU time of the host for one call of the scan's Triton kernels, and what it launches, without a GPU.

    python benchmarks/host_cost.py [--shapes "VMamba-T stage 4" Vim-S] [--calls 300] [--output benchmarks/results]
    python benchmarks/host_cost.py --before e3bc604~1 --output benchmarks/results

Kernels are compiled for sm_90 and launched through Triton's own launcher on a driver that runs nothing, with tensors on
the CPU: everything that Python does for a call is done, but not the few microseconds of the driver's launch itself.
Operators are counted below autograd; on the CPU they really compute, which maps of 2 x 2 tokens and 64 channels keep
short, but for matrix products, which are left out: in bfloat16 a CPU takes long for the smallest. Launches are planned
as for the shape's batch. `--before` measures the package of an earlier commit too, in a process of its own; e3bc604
gave the operator its own autograd in place of PyTorch's generated one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from compare import ROOT, checked_out, git
from gpu_measure import markdown, write_results
from replay import MULTIPROCESSORS
from scan_shapes import MODEL_SHAPES, ScanShape, make_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver

from visionssm.ops import selective_scan
from visionssm.ops.selective_scan.triton import config, launch

COLUMNS = ["commit", "shape", "forward_us", "training_us", "kernels", "operators"]


class Launcher:
    """Counts launches, and does nothing else."""

    launches = 0

    def __init__(self, *_) -> None: ...

    def __call__(self, *_) -> None:
        Launcher.launches += 1


class Driver:
    """As much of a driver as Triton asks for before it launches."""

    utils = SimpleNamespace(
        load_binary=lambda *_: (1, 2, 128, 0, 1024),
        get_device_properties=lambda _: dict(
            max_shared_mem=232448, multiprocessor_count=MULTIPROCESSORS, warpSize=32, max_num_regs=65536
        ),
    )
    launcher_cls = Launcher
    map_python_to_cpp_type = staticmethod(nvidia.ty_to_cpp)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _) -> int:
        return 0

    def set_current_device(self, _) -> None: ...

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "visionssm" in func.name():
            with self:  # and what it is made of
                return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {}))
        views = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        self.count += not views and "empty" not in func.name()
        return func(*args, **(kwargs or {}))


def microseconds(call, calls: int) -> float:
    call()
    taken = []
    for _ in range(7):
        begin = time.process_time()
        for _ in range(calls // 7 + 1):
            call()
        taken.append((time.process_time() - begin) / (calls // 7 + 1) * 1e6)
    return statistics.median(taken)


def measure(shape: ScanShape, calls: int) -> dict:
    config.multiprocessors = lambda _: max(1, MULTIPROCESSORS // shape.batch)  # type: ignore[assignment]
    small = shape._replace(height=2, width=2, channels=64, rank=min(shape.rank, 16))
    inputs = make_inputs(small, torch.bfloat16, batch=1)
    leaves = {n: x.requires_grad_() for n, x in inputs.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    rest = {n: x for n, x in inputs.items() if n not in leaves}

    def forward():
        return selective_scan(**leaves, **rest, backend="triton")

    weight = torch.randn_like(forward())

    def training():
        return torch.autograd.grad(forward(), list(leaves.values()), weight)

    training()
    before = Launcher.launches
    with Operators() as operators:
        training()
    launches = Launcher.launches - before
    inference = microseconds(torch.no_grad()(forward), calls)
    step = microseconds(training, calls)
    return {
        "shape": shape.name,
        "forward_us": inference,
        "training_us": step,
        "kernels": launches,
        "operators": operators.count,
    }


def measured_in(folder: Path, args: argparse.Namespace) -> list[dict]:
    """What this script finds with the package of a work tree."""
    command = [sys.executable, __file__, "--json", "--shapes", *args.shapes, "--calls", str(args.calls)]
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def pretend() -> None:
    """Have Triton and the kernels' host side take this machine for one with a GPU."""
    driver.set_active(Driver())
    # the tensors lie on a CPU, the code is for a GPU
    os.environ["TRITON_INTERPRET"] = "1"  # read by the backend alone now: the kernels are defined
    torch.bmm = lambda a, b: a.new_empty(a.shape[0], a.shape[1], b.shape[2])  # type: ignore[assignment]
    logarithm = launch._logarithm
    launch._logarithm = lambda scan: "ptx" if logarithm(scan) == "log2" else logarithm(scan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["VMamba-T stage 4", "Vim-S"], help="shapes' names")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--before", help="commit to measure first")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--output", type=Path, help="folder for host_cost.json and host_cost.md")
    args = parser.parse_args()
    if knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET is set, so the kernels would be interpreted; unset it to compile them")
    head = git("log", "-1", "--format=%h")
    rows = []
    if args.before:
        commit = git("log", "-1", "--format=%h", args.before, "--")
        with tempfile.TemporaryDirectory() as folder, checked_out(commit, Path(folder) / "before") as tree:
            rows += [{"commit": commit} | row for row in measured_in(tree, args)]
        rows += [
            {"commit": f"{head} with changes" if git("status", "--porcelain", "visionssm") else head} | row
            for row in measured_in(ROOT, args)
        ]
    else:
        torch.set_num_threads(1)
        pretend()
        rows += [measure(shape, args.calls) for shape in MODEL_SHAPES if shape.name in args.shapes]
    if args.json:
        print(json.dumps(rows))
        return

    print(markdown(rows, COLUMNS))
    if args.output:
        env = {
            "date": date.today().isoformat(),
            "command": "python " + " ".join(sys.argv),
            "torch": torch.__version__,
            "triton": triton.__version__,
        }
        write_results(args.output, "host_cost", "Microseconds of the host for a call of the scan", env, rows, COLUMNS)


if __name__ == "__main__":
    main()
