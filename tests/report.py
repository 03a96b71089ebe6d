"""Run everything and write dated reports, one file a part, to reports/.

    python tests/report.py [parity tests slow ecosystem timm faults sharded digits]

Without arguments, all parts:

    parity      the deviation of every recorded case
    tests       the tests that every change must pass
    slow        the slow tests that need no GPU, except those of other parts
    ecosystem   every pico model in libraries that take any timm model, as a table
    timm        timm's own model tests on every variant
    faults      a training that is killed again and again
    sharded     a sharded training of two processes that are killed again and again
    digits      the pico variant of each family trained on handwritten digits
"""

import argparse
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import timm
import torch

ROOT = Path(__file__).resolve().parents[1]
TESTS = ["-m", "pytest", "-n", "2", "--dist=loadgroup", "-q", "--durations=15"]
PARTS = {
    "parity": ["tools/parity.py"],
    "tests": [*TESTS, "-m", "not slow and not gpu"],
    "slow": [
        *TESTS,
        "-m",
        "slow and not gpu",
        "-k",
        "not digits_recipes_reach and not twenty_kills",
        "--ignore=tests/ecosystem",
    ],
    "ecosystem": ["-m", "pytest", "-q", "-rf", "-W", "ignore", "tests/ecosystem"],
    "timm": ["tests/timm_suite/run.py", "--pytest-args=-n 2 --durations=10"],
    "faults": ["tests/engine/fault_run.py"],
    "sharded": ["tests/engine/sharded_fault_run.py"],
    "digits": [*TESTS, "tests/engine", "-k", "digits_recipes_reach"],
}


def run(part: str) -> bool:
    """Run one part, write its report; True if it succeeded."""
    command = [sys.executable, *PARTS[part]]
    shown = " ".join(["python", *PARTS[part]])
    print(f"== {part}: {shown}", flush=True)
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        lines.append(line.rstrip().replace(f"{ROOT}/", ""))
    succeeded = process.wait() == 0
    revision = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(revision, cwd=ROOT, capture_output=True, text=True, check=False)
    report = [
        f"# {part}: {'passed' if succeeded else 'FAILED'}",
        "",
        f"{date.today()}, commit {commit.stdout.strip() or 'unknown'}, {time.monotonic() - start:.0f} s. "
        f"Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}, "
        f"{platform.machine()}, no GPU.",
        "",
        f"`{shown}`",
        "",
        "```",
        *lines,
        "```",
        "",
    ]
    folder = ROOT / "reports"
    folder.mkdir(exist_ok=True)
    (folder / f"{part}.md").write_text("\n".join(report))
    return succeeded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all if none is named")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; expected {', '.join(PARTS)}")
    results = {part: run(part) for part in args.parts or PARTS}
    for part, succeeded in results.items():
        print(f"{part}: {'passed' if succeeded else 'FAILED'}, see reports/{part}.md")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
