"""Kill a sharded run of two processes again and again, resume it, and compare it with an uninterrupted one.

    python tests/engine/sharded_fault_run.py --kills 20

A kill is SIGKILL to both processes, SIGKILL to one of them, which the other has to tell and end, or SIGTERM to one,
after which both store their state. They come at seeded random times, some of them while a checkpoint is being written.
The run fails when too few landed inside a write, when anything but a complete checkpoint is visible, or when final
weights, averaged weights, optimizer state or summary differ in one bit.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from fault_run import differences, inside_epoch, log_lines, write_images
from launching import Processes

from visionssm.engine.training.sharded_checkpoints import read_run, sharded_checkpoints

SIZE = 2
OPTIONS = (
    "--model test_vmamba --img-size 32 --epochs 3 --batch-size 4 --opt adamw --lr 1e-3 --device cpu --fsdp "
    "--warmup-epochs 1 --sched-on-updates --drop-path 0.2 --mixup 0.4 --cutmix 0.4 --reprob 0.2 --model-ema "
    "--clip-grad 1 --log-interval 1 --recovery-interval 2 --checkpoint-hist 2 --dist-timeout 60 --workers 0"
).split()


def launch(data: Path, output: Path) -> Processes:
    where = ["--data-dir", str(data), "--output", str(output), "--resume", "auto"]
    return Processes([*OPTIONS, *where], SIZE, Path(f"{output}.console"))


def writing(output: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(output.glob(".*.sharded.tmp"))


def finish(processes: Processes) -> None:
    codes = processes.wait(600)
    if any(codes):
        raise SystemExit(f"a run ended with {codes}; see {processes.console}.*")


def kill_once(data: Path, output: Path, generator: random.Random, tally: dict[str, int], aim: bool) -> bool:
    """Launch, wait, kill, count; False when the run ended by itself before."""
    kind = "both" if aim else generator.choice(("both", "one", "term"))
    delay, victim = generator.uniform(0.0, 1.5), generator.randrange(SIZE)
    before = len(log_lines(output))
    processes = launch(data, output)
    begun, until = False, 0.0
    while not begun or time.monotonic() < until or (aim and not writing(output)):
        if processes.ended():
            finish(processes)
            return False
        if not begun and len(log_lines(output)) > before:
            begun, until = True, time.monotonic() + delay
        time.sleep(0.0005)
    if kind == "both":
        processes.kill()
        tally["inside a write"] += writing(output)
    else:
        processes.send(victim, signal.SIGKILL if kind == "one" else signal.SIGTERM)
        codes = processes.wait(120)
        if 0 in codes:  # the others were done
            return False
        expected = [-signal.SIGKILL if rank == victim else 2 for rank in range(SIZE)] if kind == "one" else [143] * SIZE
        if codes != expected:
            raise SystemExit(f"the processes ended with {codes}, expected {expected}; see {processes.console}.*")
    tally[kind] += 1
    tally["inside an epoch"] += inside_epoch([line for line in log_lines(output) if "step" in line])
    for path in sharded_checkpoints(output):
        read_run(path)  # complete, or it raises
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills that have to land (default: 20)")
    parser.add_argument("--inside-write", type=int, help="of them while a checkpoint is written (default: a fifth)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=40, help="images per class (default: 40)")
    args = parser.parse_args()
    need_write = args.inside_write if args.inside_write is not None else args.kills // 5

    folder = Path(tempfile.mkdtemp(prefix="sharded-fault-run-"))
    data, whole, cut = folder / "data", folder / "whole", folder / "cut"
    write_images(data, args.images)
    generator = random.Random(args.seed)
    kinds = ("both", "one", "term")
    tally = dict.fromkeys((*kinds, "inside a write", "inside an epoch"), 0)
    started = time.monotonic()
    finish(launch(data, whole))
    runs = kills = 0
    while (kills < args.kills or tally["inside a write"] < need_write) and runs <= 3 * args.kills:
        aim = tally["inside a write"] < need_write and runs % 3 == 0
        runs += 1
        if not kill_once(data, cut, generator, tally, aim):
            shutil.rmtree(cut)  # it reached the end: begin it once more
        kills = sum(tally[kind] for kind in kinds)
        print(f"launch {runs}: {kills} kills, {tally}", flush=True)
    finish(launch(data, cut))
    different = differences(whole, cut)
    landed = kills >= args.kills and tally["inside a write"] >= need_write
    print(
        f"{kills} kills landed in {runs} launches of {SIZE} processes (both killed {tally['both']}, one killed "
        f"{tally['one']}, one told to stop {tally['term']}): {tally['inside an epoch']} inside an epoch, "
        f"{tally['inside a write']} while a checkpoint was written; {time.monotonic() - started:.0f} s"
    )
    print("too few kills landed" if not landed else "enough kills landed of every kind")
    print(
        "weights, averaged weights, optimizer state and summary are bit-equal to the uninterrupted run"
        if not different
        else f"different from the uninterrupted run: {', '.join(different[:5])} ({len(different)} in all)"
    )
    if landed and not different:
        shutil.rmtree(folder)
        return 0
    print(f"the files are in {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
