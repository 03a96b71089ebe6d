"""What the GPU benchmarks share: times, rates of the card, a description of it, results on disk."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.testing import do_bench

from visionssm.files import write_text


def milliseconds(call: Callable[[], object]) -> float:
    """Median time of one call, with a cold L2 cache."""
    return do_bench(call, warmup=50, rep=500, return_mode="median")


def peak_bytes(call: Callable[[], object]) -> int:
    """Growth of the allocated memory over one call."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def copy_bandwidth() -> float:
    """Bytes read and written per second by a copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source)) * 1e-3)


@triton.jit
def exp2_kernel(out, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = at.to(tl.float32) * 1e-9
    for _ in range(ROUNDS):
        x = tl.exp2(-x)
    tl.store(out + at, x)


def exponential_rate() -> float:
    """Exponentials per second of a kernel that does little else."""
    programs, rounds, block = 132 * 64, 1024, 512
    out = torch.empty(programs * block, device="cuda")
    ms = milliseconds(lambda: exp2_kernel[(programs,)](out, rounds, block, num_warps=4))
    return programs * block * rounds / (ms * 1e-3)


def environment() -> dict:
    """Hardware, versions and settings that a number depends on."""
    device = torch.cuda.get_device_properties(0)
    return {
        "date": date.today().isoformat(),
        "command": "python " + " ".join(sys.argv),
        "gpu": device.name,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "multiprocessors": device.multi_processor_count,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "driver": _driver(),
    }


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader", "-i", "0"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_results(folder: Path, name: str, title: str, env: dict, results: list[dict], columns: list[str]) -> None:
    """`name`.json and `name`.md: the environment, then one row per result."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"# {title}",
        "",
        ", ".join(f"{k} {v}" for k, v in env.items() if k != "command"),
        "",
        f"Written by `{env['command']}`.",
        "",
        markdown(results, columns),
        "",
    ]
    write_text(folder / f"{name}.json", json.dumps({"environment": env, "results": results}, indent=1) + "\n")
    write_text(folder / f"{name}.md", "\n".join(lines))


def markdown(results: list[dict], columns: list[str]) -> str:
    def cell(value) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

    rows = ["| " + " | ".join(cell(r.get(c)) for c in columns) + " |" for r in results]
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *rows])
