"""Run a script or a module of the GPU benchmarks on a CPU that pretends to be a GPU, with tiny shapes.

    python benchmarks/fake_gpu.py benchmarks/gpu_scan.py --shapes "VMamba-T stage 1"
    python benchmarks/fake_gpu.py -m pytest tests/gpu/test_scan.py -k preferred

So that no line of them runs for the first time when a GPU is at hand. "cuda" means the CPU, PyTorch's operators stand
in for the kernels of the scan and the convolution (whose interpreter is for their own tests), streams, events and
graphs do nothing but call, and times mean nothing.
"""

import contextlib
import os
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace

COMPILES = "gpu_warm.py"  # compiles for a GPU in any case, so it is not told that one is there

if Path(sys.argv[1] if len(sys.argv) > 1 else "").name != COMPILES:
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402


class OnCPU(TorchFunctionMode):
    """'cuda' is the CPU, as an argument and as a method."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "cuda":
            return args[0]
        if "device" in kwargs:
            kwargs["device"] = _cpu(kwargs["device"])
        if name in ("to", "device"):
            args = tuple(_cpu(a) for a in args)
        return func(*args, **kwargs)


def _cpu(device):
    return "cpu" if str(device).startswith("cuda") else device


class Event:
    def __init__(self, **_) -> None:
        self.time = 0.0

    def record(self, *_) -> None:
        self.time = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return (end.time - self.time) * 1e3


class Stream:
    cuda_stream = 0

    def wait_stream(self, *_) -> None: ...

    def wait_event(self, *_) -> None: ...


class Graph:
    def replay(self) -> None: ...


class Autocast(torch.autocast):
    def __init__(self, device_type, dtype=None, enabled=True, **options) -> None:
        super().__init__("cpu", dtype if enabled else torch.bfloat16, enabled=enabled, **options)


def install() -> None:
    """Replace what torch.cuda and the shapes would be."""
    import scan_shapes

    properties = SimpleNamespace(name="fake", total_memory=2**37, multi_processor_count=1)
    sizes: dict = dict.fromkeys(("memory_allocated", "max_memory_allocated"), lambda *_: 0)
    for name, value in dict(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda *_: properties,
        mem_get_info=lambda *_: (2**37, 2**37),
        synchronize=lambda *_: None,
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda *_: None,
        current_stream=lambda *_: Stream(),
        stream=lambda *_: contextlib.nullcontext(),
        graph=lambda *_: contextlib.nullcontext(),
        is_current_stream_capturing=lambda: False,
        is_bf16_supported=lambda *_, **__: True,
        device_of=lambda *_: contextlib.nullcontext(),
        Event=Event,
        Stream=Stream,
        CUDAGraph=Graph,
        **sizes,
    ).items():
        setattr(torch.cuda, name, value)
    torch.nn.Module.cuda = lambda self, *_: self  # type: ignore[method-assign,assignment]
    torch.autocast = Autocast  # type: ignore[misc,assignment]
    generator = torch.Generator
    torch.Generator = lambda device="cpu": generator(_cpu(device))  # type: ignore[misc,assignment]
    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    torch.Tensor.record_stream = lambda *_: None  # type: ignore[method-assign,assignment]
    torch.optim.Optimizer._accelerator_graph_capture_health_check = lambda *_: None  # type: ignore[attr-defined]
    scan_shapes.MODEL_SHAPES = tuple(_tiny(shape) for shape in scan_shapes.MODEL_SHAPES)
    scan_shapes.VMAMBA_TINY = scan_shapes.MODEL_SHAPES[:4]
    from visionssm.ops import conv_backends
    from visionssm.ops.selective_scan import backends, portable

    functions = {name: getattr(portable, name) for name in ("forward", "backward", "states_shape")}
    backends.BACKENDS = tuple(b._replace(**functions) if b.name == "triton" else b for b in backends.BACKENDS)
    conv_backends.CONV_BACKENDS = ()
    OnCPU().__enter__()
    import gpu_measure

    gpu_measure.REPEATS = gpu_measure.WARMUPS = 1
    gpu_measure.FLUSHED = gpu_measure.COPIED = 2**10
    gpu_measure.PROGRAMS = gpu_measure.ROUNDS = 1


def _tiny(shape):
    return shape._replace(height=2, width=3, channels=6, states=min(shape.states, 2), rank=min(shape.rank, 2), batch=2)


def main() -> None:
    sys.path[:0] = [str(Path(__file__).parent)]
    arguments = sys.argv[1:]
    if not arguments:
        sys.exit(__doc__)
    if Path(arguments[0]).name != COMPILES:
        install()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
