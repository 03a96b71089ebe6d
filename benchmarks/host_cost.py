"""CPU time of the host for one call of the scan's Triton kernels, and what it launches, without a GPU.

    python benchmarks/host_cost.py [--shapes "VMamba-T stage 4"] [--calls 300]

Kernels are compiled for sm_90 and launched through Triton's own launcher on a driver that runs nothing, with tensors on
the CPU: everything that Python does for a call is done, but not the few microseconds of the driver's launch itself.
Operators are counted below autograd; on the CPU they really compute, so the time of the training step is an upper bound
that small shapes keep close.
"""

import argparse
import os
import statistics
import sys
import time
from types import SimpleNamespace

import torch
from kernel_resources import MULTIPROCESSORS
from scan_shapes import MODEL_SHAPES, ScanShape, make_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia
from triton.runtime import driver

from visionssm.ops import selective_scan
from visionssm.ops.selective_scan.triton import config, launch


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
        views = any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments)
        self.count += not views and "empty" not in func.name() and "visionssm" not in func.name()
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


def measure(shape: ScanShape, calls: int) -> str:
    inputs = make_inputs(shape, torch.bfloat16, batch=1)
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
    return f"| {shape.name} | {inference:.0f} | {step:.0f} | {launches} | {operators.count} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["VMamba-T stage 4"], help="parts of shapes' names")
    parser.add_argument("--calls", type=int, default=300)
    args = parser.parse_args()
    if knobs.runtime.interpret:
        sys.exit("TRITON_INTERPRET is set, so the kernels would be interpreted; unset it to compile them")
    torch.set_num_threads(1)
    driver.set_active(Driver())
    # the tensors lie on a CPU, the code is for a GPU
    os.environ["TRITON_INTERPRET"] = "1"  # read by the backend alone now: the kernels are defined
    config.multiprocessors = lambda _: MULTIPROCESSORS  # type: ignore[assignment]
    logarithm = launch._logarithm
    launch._logarithm = lambda scan: "ptx" if logarithm(scan) == "log2" else logarithm(scan)
    print("| shape | forward, us | forward + backward, us | kernels of a training step | operators of it |")
    print("|---|---|---|---|---|")
    for shape in MODEL_SHAPES:
        if any(part in shape.name for part in args.shapes):
            print(measure(shape, args.calls), flush=True)


if __name__ == "__main__":
    main()
