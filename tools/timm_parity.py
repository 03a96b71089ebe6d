#!/usr/bin/env python
"""Run our trainer and timm's train.py from one recipe on the same images and compare their losses.

    python tools/timm_parity.py --timm CHECKOUT --output work/timm_parity
    python tools/timm_parity.py --timm CHECKOUT --options tests/engine/timm_options.json

CHECKOUT holds timm's train.py of the pinned version, which is not in its wheel. Every step takes all training images,
so that the order of the samples, which the two draw differently, does not matter; augmentation and drop path are off,
and both start from one file of weights. The second form records the options of timm's parser, against which the tests
hold every recipe.
"""

import argparse
import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import timm
import torch
import yaml
from timm.utils import ParseKwargs

import visionssm  # noqa: F401
from visionssm.digits.images import digit_images
from visionssm.files import write_text

IMAGES, STEPS = 48, 6
RECIPE = {
    "model": "test_vmamba",
    "num_classes": 3,
    "input_size": [3, 32, 32],
    "batch_size": IMAGES,
    "opt": "adamw",
    "lr_base": 1.0e-3,
    "lr_base_size": IMAGES,
    "weight_decay": 0.05,
    "clip_grad": 1.0,
    "sched": "cosine",
    "sched_on_updates": True,
    "epochs": STEPS,
    "warmup_epochs": 2,
    "warmup_lr": 1.0e-5,
    "no_aug": True,
    "smoothing": 0.1,
    "model_ema": True,
    "model_ema_decay": 0.9,
    "workers": 0,
    "device": "cpu",
    "seed": 0,
    "layer_decay": 0.8,
}


def write_images(folder: Path) -> None:
    """Write the first digits of three classes, as many of each, to both splits."""
    counts = [0, 0, 0]
    for image, label in digit_images(32):
        if label < 3 and counts[label] < IMAGES // 3:
            counts[label] += 1
            for split in ("train", "validation"):
                path = folder / split / str(label) / f"{counts[label]}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)


def train(script: Path, folder: Path, name: str, *extra: str) -> list[dict[str, str]]:
    """Run a training script and return the rows of its summary."""
    argv = [sys.executable, str(script), "-c", str(folder / "recipe.yaml"), "--data-dir", str(folder / "data")]
    argv += ["--output", str(folder), "--experiment", name, "--initial-checkpoint", str(folder / "weights.pth"), *extra]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{script} ended with {result.returncode}:\n{result.stderr[-3000:]}")
    with (folder / name / "summary.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def options(script: Path) -> dict[str, dict]:
    """Return what timm's parser expects of each option, as a recipe names it."""
    parser = runpy.run_path(str(script))["parser"]
    found = {}
    for action in sorted(parser._actions, key=lambda action: action.dest):
        if isinstance(action, ParseKwargs):
            found[action.dest] = {"type": "mapping", "list": False}
        elif action.nargs == 0:
            found[action.dest] = {"type": "bool", "list": False}
        else:
            several = action.nargs in ("+", "*") or isinstance(action.nargs, int)
            found[action.dest] = {"type": getattr(action.type, "__name__", "str"), "list": several}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timm", type=Path, required=True, help="folder with timm's train.py")
    parser.add_argument("--output", type=Path, default=Path("work/timm_parity"), help="scratch folder, replaced")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest difference of a loss (default: 1e-4)")
    parser.add_argument("--options", type=Path, metavar="FILE", help="only write the options of timm's parser, as JSON")
    args = parser.parse_args()
    if not (args.timm / "train.py").is_file():
        parser.error(f"{args.timm} has no train.py")
    if args.options:
        write_text(args.options, json.dumps(options(args.timm / "train.py"), indent=1) + "\n")
        return 0
    shutil.rmtree(args.output, ignore_errors=True)
    write_images(args.output / "data")
    torch.manual_seed(0)
    model = timm.create_model(str(RECIPE["model"]), num_classes=RECIPE["num_classes"])
    torch.save(model.state_dict(), args.output / "weights.pth")
    (args.output / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    ours = train(Path(__file__).parent / "train.py", args.output, "ours")
    theirs = train(args.timm / "train.py", args.output, "timm", "--device-modules", "visionssm")
    # timm's summary holds the averaged weights' evaluation as eval_*, ours beside the plain one as eval_ema_*
    pairs = (("train_loss", "train_loss"), ("eval_ema_loss", "eval_loss"), ("lr", "lr"))
    largest = dict.fromkeys(("train_loss", "eval_loss", "lr"), 0.0)
    print("step  train loss ours / timm     EMA eval loss ours / timm  learning rate ours / timm")
    for row, other in zip(ours, theirs, strict=True):
        values = [(float(row[mine]), float(other[his])) for mine, his in pairs]
        for (_, name), (mine, his) in zip(pairs, values, strict=True):
            largest[name] = max(largest[name], abs(mine - his))
        print(f"{row['epoch']:>4}  " + "  ".join(f"{mine:11.8f} / {his:11.8f}" for mine, his in values))
    print("largest differences: " + ", ".join(f"{name} {value:.1e}" for name, value in largest.items()))
    good = max(largest["train_loss"], largest["eval_loss"]) <= args.tolerance
    print("the two agree" if good else f"the two differ by more than {args.tolerance:g}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
