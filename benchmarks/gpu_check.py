"""Tell everything about the kernels on a GPU in one run of at most nine minutes.

    python benchmarks/gpu_check.py --output work/gpu-check
    python benchmarks/gpu_check.py --output work/gpu-check --fake-gpu

Steps in this order, each under a limit of its own, each with a log of its own in the folder: versions; compilation of
the kernels that the later steps launch, in parallel and without the GPU; tests; accesses out of bounds
(compute-sanitizer); the scan and the causal convolution against floors and peers; other blocks and rules; Vim's scan;
stall reasons (ncu); whole models. A step that fails or runs out of time costs no other step; `summary.md` says how each
ended, and the exit status is 1 if one failed. Without the tools of the last CUDA toolkit their steps are passed over.

--fake-gpu goes through the same steps on a CPU with tiny shapes (`fake_gpu.py`), to find what is wrong with them before
a GPU is at hand; its times mean nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from visionssm.files import write_text

HERE = Path(__file__).parent
TOTAL = 530  # seconds of all steps together
FAKE = 20  # times a step's limit where kernels are interpreted


class Step(NamedTuple):
    name: str
    limit: int  # seconds
    command: list[str]  # after `python`, or a tool before it
    tool: str | None = None  # program that must be there, with its arguments


def steps(folder: Path, fake: bool) -> list[Step]:
    """What is run, in the order of what must be known first."""
    workers = str(2 if fake else min(14, os.cpu_count() or 1))
    output = ["--output", str(folder)]
    models = ["--models", "vmamba_tiny_s1l8", "vim_small", "swin_tiny_patch4_window7_224", "--large-batch", "0"]
    scans, rules = ["--shapes", "VMamba-T", "--routes"], []
    if fake:  # one of each, small
        models = ["--models", "test_vmamba", "--large-batch", "0", "--img-size", "32", "--batch", "2"]
        scans, rules = ["--shapes", "VMamba-T detection", "--routes"], ["--shapes", "VMamba-T stage 2"]
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "gpu"]
    parallel = [] if fake or not _importable("xdist") else ["-n", "8"]
    chosen = "preferred" if fake else "bfloat16 or same_bits or cuda_graph or beyond or NaN or streams"
    return [
        Step("versions", 60, ["gpu_versions.py", *output]),
        Step("compile", 90, ["gpu_warm.py", "--workers", workers, *(["--most", "1"] if fake else [])]),
        Step("tests", 90, [*tests, *parallel, str(HERE.parent / "tests/gpu/test_scan.py"), "-k", chosen]),
        Step("memcheck", 40, ["gpu_touch.py"], "compute-sanitizer --tool memcheck --error-exitcode 1"),
        Step("scan", 110, ["gpu_scan.py", "--no-portable", *scans, *output]),
        Step("convolution", 20, ["gpu_conv.py", *output]),
        Step("rules", 60, ["gpu_rules.py", *rules, *output]),
        Step("scan-vim", 40, ["gpu_scan.py", "--no-portable", "--shapes", "Vim-S", "--name", "gpu_scan_vim", *output]),
        Step("stalls", 40, ["gpu_touch.py"], f"ncu {_SECTIONS} --log-file {folder / 'stalls.txt'}"),
        Step("models", 70, ["gpu_models.py", *models, *output]),
    ]


_SECTIONS = "--clock-control none -k regex:lanes -c 6 " + " ".join(
    f"--section {name}" for name in ("SpeedOfLight", "WarpStateStats", "SchedulerStats", "Occupancy")
)


def _importable(name: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode == 0


def run(step: Step, folder: Path, limit: float, fake: bool) -> str:
    """How a step ended; what it says goes into its log."""
    command = list(step.command)
    if not command[0].startswith("-"):
        command[0] = str(HERE / command[0])
    if fake:
        command = [str(HERE / "fake_gpu.py"), *command]
    tool = [] if step.tool is None or fake else step.tool.split()
    if tool and shutil.which(tool[0]) is None:
        return f"passed over: there is no {tool[0]}"
    environment = {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(folder / "cache"),
    }
    with open(folder / f"{step.name}.log", "w") as log:
        try:
            done = subprocess.run(
                [*tool, sys.executable, *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return f"failed: out of time after {limit:.0f} s"
    return "passed" if done.returncode == 0 else f"failed: exit status {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--fake-gpu", action="store_true", help="on a CPU, with tiny shapes")
    parser.add_argument("--steps", nargs="*", help="only these")
    args = parser.parse_args()
    folder = args.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    slower = FAKE if args.fake_gpu else 1
    begin = time.monotonic()
    lines = ["# GPU check", "", "| step | seconds | outcome |", "|---|---|---|"]
    failed = False
    for step in steps(folder, args.fake_gpu):
        if args.steps is not None and step.name not in args.steps:
            continue
        before = time.monotonic()
        left = TOTAL * slower - (before - begin)
        outcome = (
            run(step, folder, min(step.limit * slower, left), args.fake_gpu) if left > 5 else "failed: no time left"
        )
        failed |= outcome.startswith("failed")
        lines.append(f"| {step.name} | {time.monotonic() - before:.1f} | {outcome} |")
        print(lines[-1], flush=True)
        write_text(folder / "summary.md", "\n".join(lines) + "\n")
    if failed:
        sys.exit(f"FAILED: see {folder / 'summary.md'} and the logs beside it")


if __name__ == "__main__":
    main()
