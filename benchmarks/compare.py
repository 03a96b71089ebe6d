"""Time the scan of two commits against each other on a CPU.

    python benchmarks/compare.py BASE [HEAD] [--shapes VMamba-T] [--threads 1] [--rounds 7]

Both commits are checked out into temporary work trees. A process for each holds its package, and they take turns on
every shape of `CPU_SHAPES`, forward and forward + backward, so that a disturbance of the machine hits both. Shapes and
timer are those of the running checkout. HEAD is the last commit if it is not given.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODES = ("forward", "forward + backward")


def git(*arguments: str) -> str:
    """Output of a git command.

    Raises:
        SystemExit: git fails; with its message.
    """
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"compare: {result.stderr.strip() or 'git failed'}")
    return result.stdout.strip()


@contextmanager
def checked_out(commit: str, folder: Path):
    """A work tree of a commit while the block runs."""
    git("worktree", "add", "--detach", "--quiet", str(folder), commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


class Worker:
    """A process with the package of one work tree; times what it is asked for."""

    def __init__(self, folder: Path, threads: int):
        # the path is set inside: an installed package must not come before the work tree's
        code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT / 'benchmarks')!r}]; import compare; "
        code += f"compare.serve({str(folder)!r}, {threads})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait()

    def seconds(self, shape: str, mode: str) -> float:
        """One measurement; the first of a shape and mode warms up."""
        print(json.dumps([shape, mode]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("compare: a process ended, see its error above")
        return json.loads(answer)


def serve(folder: str, threads: int) -> None:
    """In the process of a work tree: read shapes and modes, write seconds."""
    import torch
    from scan_shapes import CPU_SHAPES, make_inputs
    from timing import timer_of

    import visionssm
    from visionssm.ops import selective_scan

    if not Path(visionssm.__file__).is_relative_to(folder):
        sys.exit(f"the package comes from {visionssm.__file__}, not from {folder}")
    torch.set_num_threads(threads)
    shapes = {shape.name: shape for shape in CPU_SHAPES}

    def make_call(name: str, mode: str):
        inputs = make_inputs(shapes[name], torch.float32)
        if mode == "forward":
            return torch.no_grad()(lambda: selective_scan(**inputs))
        leaves = [x.requires_grad_() for x in inputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
        return lambda: torch.autograd.grad(selective_scan(**inputs).sum(), leaves)

    timers = {}
    for line in sys.stdin:
        key = tuple(json.loads(line))
        if key not in timers:
            timers = {key: timer_of(make_call(*key), threads)}
        timer, number = timers[key]
        print(json.dumps(timer.timeit(number).median), flush=True)


def compare(workers: list[Worker], shape: str, mode: str, rounds: int) -> str:
    """A row: both medians, the median of the rounds' ratios, and the least and largest of them."""
    taken = [[worker.seconds(shape, mode) for worker in workers] for _ in range(rounds + 1)][1:]
    base, head = (1e3 * statistics.median(times) for times in zip(*taken, strict=True))
    ratios = [after / before for before, after in taken]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    return f"| {shape} | {mode} | {base:.2f} | {head:.2f} | {statistics.median(ratios):.2f} | {spread} |"


def main(argv: list[str] | None = None) -> None:
    from scan_shapes import CPU_SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="commit, branch or tag")
    parser.add_argument("head", nargs="?", default="HEAD")
    parser.add_argument("--shapes", nargs="*", default=[""], help="parts of shapes' names (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    names = [s.name for s in CPU_SHAPES if any(part in s.name for part in args.shapes)]
    if not names:
        sys.exit(f"compare: no shape matches; known: {', '.join(s.name for s in CPU_SHAPES)}")
    commits = [git("log", "-1", "--format=%h", commit, "--") for commit in (args.base, args.head)]
    print(f"base {commits[0]}, head {commits[1]}, {args.threads} threads, medians of {args.rounds} rounds\n")
    print("| shape | what | base (ms) | head (ms) | head / base | from round to round |\n|---|---|---:|---:|---:|---:|")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        trees = [stack.enter_context(checked_out(c, folder / side)) for c, side in zip(commits, "ab", strict=True)]
        workers = [stack.enter_context(Worker(tree, args.threads)) for tree in trees]
        for name in names:
            for mode in MODES:
                print(compare(workers, name, mode, args.rounds), flush=True)


if __name__ == "__main__":
    main()
