"""Kill a training run again and again, resume it, and compare its weights with those of an uninterrupted run.

    python tests/engine/fault_run.py --kills 20

Kills are SIGKILL or SIGTERM at seeded random times, some of them aimed at a checkpoint being written; every launch has
another number of loader workers. The run fails when too few kills landed inside an epoch or inside a write, or when
the final weights, averaged weights, optimizer state or summary differ in one bit.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch

from visionssm.checkpoints import read_content
from visionssm.commands import train
from visionssm.digits.images import digit_images

EPOCHS, BATCH = 4, 8
OPTIONS = (
    f"--model test_vmamba --img-size 32 --epochs {EPOCHS} --batch-size {BATCH} --opt adamw --lr 1e-3 --device cpu "
    "--warmup-epochs 1 --sched-on-updates --drop-path 0.2 --mixup 0.4 --cutmix 0.4 --reprob 0.2 --aa rand-m5 "
    "--model-ema --clip-grad 1 --log-interval 1 --recovery-interval 3 --checkpoint-hist 2"
).split()


def write_images(folder: Path, per_class: int) -> None:
    """Write a few real digits of three classes as an image folder."""
    counts: dict[int, int] = {}
    for image, label in digit_images(32):
        count = counts[label] = counts.get(label, 0) + 1
        if label < 3 and count <= per_class:
            path = folder / ("validation" if count % 4 == 0 else "train") / str(label) / f"{count}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


def launch(data: Path, output: Path, workers: int) -> int:
    """Start the training command in a forked process, which has everything imported already, and return its id."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        console = os.open(f"{output}.console", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(console, 1)
        os.dup2(console, 2)
        torch.set_num_threads(1)
        where = ["--data-dir", str(data), "--output", str(output), "--workers", str(workers), "--resume", "auto"]
        code = train.main([*OPTIONS, *where])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: int) -> int | None:
    """Return the exit code of an ended process (negative for a signal), or None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def log_lines(output: Path) -> list[str]:
    path = output / "train.log"
    return path.read_text().splitlines() if path.exists() else []


def inside_epoch(lines: list[str]) -> bool:
    """Return whether the last thing a log tells is a step before the last one of its epoch."""
    match = re.search(r"step (\d+)/(\d+)", lines[-1]) if lines else None
    return match is not None and int(match[1]) < int(match[2])


def unfinished_writes(output: Path) -> int:
    return len(list(output.glob(".*pth.tar*.tmp")))


@dataclass
class Tally:
    """What kind of kills landed."""

    signals: dict[str, int] = field(default_factory=lambda: {"SIGKILL": 0, "SIGTERM": 0})
    inside_epoch: int = 0
    inside_write: int = 0

    @property
    def kills(self) -> int:
        return sum(self.signals.values())


def kill_once(data: Path, output: Path, generator: random.Random, tally: Tally, aim_at_write: bool) -> bool:
    """Launch, wait, kill and count; return False when the run ended by itself before."""
    number = signal.SIGKILL if aim_at_write or generator.random() < 0.5 else signal.SIGTERM
    delay = generator.uniform(0.0, 1.5)
    before = len(log_lines(output))
    process = launch(data, output, workers=generator.choice((0, 1, 2)))
    while len(log_lines(output)) == before:  # training has not begun
        if (code := ended(process)) is not None:
            return finished(code, output)
        time.sleep(0.01)
    until = time.monotonic() + delay
    while time.monotonic() < until or (aim_at_write and not unfinished_writes(output)):
        if (code := ended(process)) is not None:
            return finished(code, output)
        time.sleep(0.0005 if time.monotonic() >= until else 0.01)
    os.kill(process, number)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code == 0:
        return False
    expected = -number if number == signal.SIGKILL else 128 + number
    if code != expected:
        raise SystemExit(f"the killed process ended with {code}, expected {expected}; see {output}.console")
    tally.signals[signal.Signals(number).name] += 1
    tally.inside_epoch += inside_epoch([line for line in log_lines(output) if "step" in line])
    tally.inside_write += unfinished_writes(output) > 0
    for leftover in output.glob(".*.tmp"):
        leftover.unlink()
    return True


def finished(code: int, output: Path) -> bool:
    if code:
        raise SystemExit(f"the run ended by itself with {code}; see {output}.console")
    return False


def differences(one: Path, other: Path) -> list[str]:
    """Return the names of all tensors and files that differ between two finished runs."""
    first, second = (read_content(folder / "last.pth.tar") for folder in (one, other))
    found = [
        f"{key} {name}"
        for key in ("state_dict", "state_dict_ema")
        for name in first[key]
        if not torch.equal(first[key][name], second[key][name])
    ]
    for index, state in first["optimizer"]["state"].items():
        for name, value in state.items():
            if not torch.equal(torch.as_tensor(value), torch.as_tensor(second["optimizer"]["state"][index][name])):
                found.append(f"optimizer {index} {name}")
    if (one / "summary.csv").read_text() != (other / "summary.csv").read_text():
        found.append("summary.csv")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills that have to land (default: 20)")
    parser.add_argument("--inside-epoch", type=int, help="of them inside an epoch (default: a quarter)")
    parser.add_argument("--inside-write", type=int, help="of them while a checkpoint is written (default: 3 in 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=64, help="images per class (default: 64)")
    args = parser.parse_args()
    need_epoch = args.inside_epoch if args.inside_epoch is not None else -(-args.kills // 4)
    need_write = args.inside_write if args.inside_write is not None else -(-args.kills * 3 // 20)

    folder = Path(tempfile.mkdtemp(prefix="fault-run-"))
    data, whole, cut = folder / "data", folder / "whole", folder / "cut"
    write_images(data, args.images)
    generator = random.Random(args.seed)
    tally = Tally()
    started = time.monotonic()
    process = launch(data, whole, workers=0)
    if code := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise SystemExit(f"the uninterrupted run ended with {code}; see {whole}.console")
    runs = 0
    while tally.kills < args.kills or tally.inside_epoch < need_epoch or tally.inside_write < need_write:
        if runs > 3 * args.kills:
            break
        runs += 1
        aim = tally.inside_write < need_write and runs % 3 == 0
        if not kill_once(data, cut, generator, tally, aim):
            shutil.rmtree(cut)  # it reached the end: begin it once more
    process = launch(data, cut, workers=2)
    if code := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise SystemExit(f"the last resume ended with {code}; see {cut}.console")
    different = differences(whole, cut)
    landed = tally.kills >= args.kills and tally.inside_epoch >= need_epoch and tally.inside_write >= need_write
    print(
        f"{tally.kills} kills landed in {runs} launches ({', '.join(f'{n} {s}' for s, n in tally.signals.items())}): "
        f"{tally.inside_epoch} inside an epoch, {tally.inside_write} while a checkpoint was written; "
        f"{time.monotonic() - started:.0f} s"
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
