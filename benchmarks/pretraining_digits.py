"""Digits with few labels: training from the beginning against fine-tuning of a backbone pre-trained without labels.

python benchmarks/pretraining_digits.py --output work/pretraining --report pretraining_digits.md

All training images are used to pre-train, once; then, for each seed, a share of each class keeps its labels, and one
model is trained on these alone from initial weights, one from the pre-trained ones, with the same recipe. Accuracies
are of the whole validation split after the last epoch. Calling it again goes on where it stopped.
"""

import argparse
import csv
import random
import shutil
import statistics
import sys
from pathlib import Path

from visionssm.commands import prepare_digits, pretrain, train
from visionssm.files import write_text

MODEL = ["--model-kwargs", "img_size=32", "patch_size=4"]  # 64 patches, as a mask needs some


def labelled(whole: Path, folder: Path, share: float, seed: int) -> int:
    """Make a data set of a share of each class's training images, and all images to validate with.

    Returns:
        The number of training images.
    """
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(whole / "validation", folder / "validation")
    count = 0
    for number, group in enumerate(sorted((whole / "train").iterdir())):
        images = sorted(group.iterdir())
        chosen = random.Random(1000 * seed + number).sample(images, max(1, round(share * len(images))))
        (folder / "train" / group.name).mkdir(parents=True)
        for image in chosen:
            shutil.copy(image, folder / "train" / group.name)
        count += len(chosen)
    return count


def called(main, argv: list[object]) -> None:
    """Call a command; end with its exit status unless it succeeds."""
    if status := main([str(value) for value in argv]):
        sys.exit(status)


def last(run: Path, column: str) -> float:
    """The last value of a column of a run's summary."""
    with (run / "summary.csv").open(newline="") as file:
        return float([row[column] for row in csv.DictReader(file) if row.get(column)][-1])


def main(argv: list[str] | None = None) -> int:
    """Run the experiment and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", required=True, type=Path, help="folder of data and runs")
    add("--report", type=Path, help="write the table here too")
    add("--share", type=float, default=0.1, help="of the labels")
    add("--seeds", type=int, default=3, help="number of seeds")
    add("--pretrain-epochs", type=int, default=40, help="epochs without labels")
    add("--epochs", type=int, default=80, help="epochs with labels")
    args = parser.parse_args(argv)
    digits = args.output / "digits"
    if not digits.exists():
        called(prepare_digits.main, ["--output", digits])
    recipe = ["-c", "digits/test_vim", "--workers", 0, *MODEL, "--resume", "auto"]
    pre = args.output / "pretrained"
    called(pretrain.main, [*recipe, "--data-dir", digits, "--output", pre, "--epochs", args.pretrain_epochs])
    rows = []
    for seed in range(args.seeds):
        data = args.output / f"labels_{seed}"
        count = labelled(digits, data, args.share, seed)
        common = [*recipe, "--data-dir", data, "--epochs", args.epochs, "--val-interval", 20, "--seed", seed]
        batch = ["--batch-size", min(32, count)]
        called(train.main, [*common, *batch, "--output", args.output / f"scratch_{seed}"])
        begin = ["--pretrained-path", pre / "last.pth.tar"]
        called(train.main, [*common, *batch, *begin, "--output", args.output / f"tuned_{seed}"])
        rows.append(
            (seed, count, *(last(args.output / f"{kind}_{seed}", "eval_top1") for kind in ("scratch", "tuned")))
        )
    gains = [tuned - scratch for *_, scratch, tuned in rows]
    spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
    mean = statistics.mean(gains)
    lines = ["| seed | labelled images | from the beginning | pre-trained | difference |", "|---|---|---|---|---|"]
    lines += [f"| {s} | {n} | {a:.2f} % | {b:.2f} % | {b - a:+.2f} |" for s, n, a, b in rows]
    verdict = "wins" if mean > 2 * spread / max(len(gains), 1) ** 0.5 else "does not win" if mean <= 0 else "may win"
    lines += [
        "",
        f"Pre-training {verdict}: {mean:+.2f} points of top-1 in the mean, standard deviation {spread:.2f} over "
        f"{len(gains)} seed(s); loss of the pre-training on the validation split {last(pre, 'eval_loss'):.3f} after "
        f"{args.pretrain_epochs} epochs.",
    ]
    print("\n".join(lines))
    if args.report:
        head = "# Digits with few labels\n\n`python benchmarks/pretraining_digits.py --output work/pretraining`\n\n"
        write_text(args.report, head + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
