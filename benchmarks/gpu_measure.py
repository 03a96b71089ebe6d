"""What the GPU benchmarks share: times, rates of the card, a description of it, results on disk."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from visionssm.files import write_text

REPEATS = 30  # calls timed
WARMUPS = 3  # calls before
FLUSHED = 2**28  # bytes that empty the L2 cache
COPIED = 2**30  # bytes of the copy that bandwidth is measured by
PROGRAMS, ROUNDS = 64, 1024  # of the kernel of exponentials: programs per multiprocessor, exponentials of each element


class Times(NamedTuple):
    """Milliseconds of one call."""

    graph: float | None  # replayed from a CUDA graph: the GPU's work alone; None where the call cannot be captured
    eager: float  # as PyTorch runs it, one call after the other, the host's work included
    note: str = ""  # why it cannot be captured


def milliseconds(call: Callable[[], object], repeats: int | None = None) -> Times:
    """Median time of one call, which changes nothing: replays with a cold L2 cache, and eager calls."""
    repeats = min(repeats or REPEATS, REPEATS)
    eager = eager_milliseconds(call, repeats)
    try:
        replay = capture(call)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize()
        return Times(None, eager, f"not captured: {str(error).splitlines()[0][:80]}")
    cache = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        cache.zero_()  # empties the cache, and gives the host time to run ahead
        start.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    return Times(statistics.median(start.elapsed_time(end) for start, end in events), eager)


def eager_milliseconds(call: Callable[[], object], repeats: int | None = None) -> float:
    """Mean time of calls that follow one another."""
    repeats = min(repeats or REPEATS, REPEATS)
    for _ in range(WARMUPS):
        call()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - begin) / repeats * 1e3


def capture(call: Callable[[], object]) -> Callable[[], None]:
    """Capture a call, which has run before, in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


@contextmanager
def exact_products() -> Iterator[None]:
    """Products and convolutions in float32 as they stand, not in TF32: for comparisons."""
    settings = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [s.allow_tf32 for s in settings]
    try:
        for s in settings:
            s.allow_tf32 = False
        yield
    finally:
        for s, allowed in zip(settings, before, strict=True):
            s.allow_tf32 = allowed


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
    """Bytes read and written per second by a copy of a large tensor."""
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = milliseconds(lambda: target.copy_(source))
    return 2 * source.numel() / ((times.graph or times.eager) * 1e-3)


@triton.jit
def exp2_kernel(out, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = at.to(tl.float32) * 1e-9
    for _ in range(ROUNDS):
        x = tl.exp2(-x)
    tl.store(out + at, x)


def exponential_rate() -> float:
    """Exponentials per second of a kernel that does little else."""
    programs, rounds, block = torch.cuda.get_device_properties(0).multi_processor_count * PROGRAMS, ROUNDS, 512
    out = torch.empty(programs * block, device="cuda")
    times = milliseconds(lambda: exp2_kernel[(programs,)](out, rounds, block, num_warps=4))
    return programs * block * rounds / ((times.graph or times.eager) * 1e-3)


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


class Results:
    """Rows of a table, printed and written to disk one by one, so that nothing measured is lost."""

    def __init__(self, folder: Path | None, name: str, title: str, env: dict, columns: list[str]) -> None:
        self.folder, self.name, self.title, self.env, self.columns = folder, name, title, env, columns
        self.rows: list[dict] = []
        print(env)
        print(markdown([], columns), flush=True)

    def add(self, row: dict) -> None:
        self.rows.append(row)
        print(markdown([row], self.columns).splitlines()[-1], flush=True)
        if self.folder:
            write_results(self.folder, self.name, self.title, self.env, self.rows, self.columns)

    @contextmanager
    def row(self, **given: object) -> Iterator[dict]:
        """A row to be filled in; what goes wrong is written into it, and the next row follows."""
        row = dict(given)
        try:
            yield row
        except Exception as error:  # noqa: BLE001  one failure must not cost the other rows
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self.add(row)

    @property
    def failures(self) -> list[str]:
        return [f"{row.get(self.columns[0])}: {row['failed']}" for row in self.rows if row.get("failed")]


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
