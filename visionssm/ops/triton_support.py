"""Whether Triton kernels can run; Triton itself is not imported."""

import os
from importlib.metadata import PackageNotFoundError, version

import torch


def _triton_version() -> tuple[int, ...] | None:
    # read, not imported: it exists on few platforms and under several distributions' names
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        try:
            return tuple(int(part) for part in version(name).split("+")[0].split(".")[:2])
        except PackageNotFoundError:
            continue
    return None


_TRITON = _triton_version()


def unavailable(device: str, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run on a type of device, or None if they can."""
    if _TRITON is None:
        return "triton is not installed"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "its kernels need a GPU (for tests, TRITON_INTERPRET=1 in the environment interprets them on a CPU)"
    if _TRITON < (3, 5):
        return f"its kernels need triton 3.5 (PyTorch 2.9) or newer, found {'.'.join(map(str, _TRITON))}"
    if dtype == torch.float64:
        return "its kernels take float32, bfloat16 and float16, not float64"
    return None
