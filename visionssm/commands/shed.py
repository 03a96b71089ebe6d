"""Remove the parts of a trained classifier that matter least, one at a time, and write the smaller one.

python tools/shed.py --checkpoint RUN/last.pth.tar --data-dir DIR --steps 4 --output DIR
python tools/shed.py --checkpoint RUN/last.pth.tar --data-dir DIR --kind route --steps 8 --budget-gmacs 3.5 --output DIR

No training: in each step every candidate is left out in turn, and the one whose absence hurts a calibration set least
goes for good (Mamba-Shedder, arXiv:2501.17088). The table says after each step what is left of loss and top-1 on the
validation split, parameters, multiply-adds and measured speed. The folder receives shedding.json, table.csv, table.md
and pruned.pth, which says itself what it lacks: every tool and `timm.create_model` take it as it is, and
`tools/train.py --pretrained-path` tunes it. A run that was interrupted continues when it is called again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..files import write_atomically, write_text
from . import _auto
from ._boundary import bounded
from ._inference_options import add_image_options, add_model_options, read_classifier
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options

COLUMNS = ("step", "removed", "loss", "top1", "param_count_m", "gmacs", "images_per_second")
_KINDS = ("block", "branch", "ssm", "route")
_METRICS = ("loss", "top1", "kl")


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    add = parser.add_argument
    add("--data-dir", required=True, metavar="DIR", help="data set folder")
    add(
        "--output", required=True, metavar="DIR", help="folder for what is found; an interrupted search continues in it"
    )
    add("--overwrite", action="store_true", help="begin anew in a folder that holds another search")
    add("--dataset", default="", metavar="NAME", help="'' for an image folder, or a timm data set name")
    add("--split", default="train", metavar="NAME", help="split that images are drawn from to choose by")
    add("--samples", type=int, default=256, metavar="N", help="images to choose by")
    add("--val-split", default="validation", metavar="NAME", help="split that the table's loss and top-1 are of")
    add("--kind", choices=_KINDS, default="block", help="parts to remove")
    add("--metric", choices=_METRICS, default="loss", help="what is to stay small; kl needs no labels")
    add("--steps", type=int, default=1, metavar="N", help="parts to remove")
    add("--budget-gmacs", type=float, metavar="X", help="stop as soon as an image costs so little")
    add("--candidates", nargs="+", metavar="PATH", help="choose among these parts only")
    add("-b", "--batch-size", type=int, default=64, metavar="N", help="images per forward pass")
    add_options(parser, "workers")
    add("--device", default="auto", metavar="NAME", help="cuda, cpu, ...; auto takes the GPU when there is one")
    add("--seed", type=int, default=0, metavar="N", help="draws the images to choose by")
    add_model_options(parser)
    add_image_options(parser)
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args(argv)
    from ..engine.reports.progress import setup_logging

    setup_logging()
    try:
        search(args)
    except ValueError as error:  # the library's, of what the options ask for
        raise UserError(str(error)) from error
    return 0


def search(args: argparse.Namespace) -> None:
    """Search, and write everything down after each step.

    Raises:
        UserError: Something about options, data or an earlier search in the folder needs the user.
    """
    import torch

    from ..compression.shedding import Shedding, shed
    from ..engine.data.processes import resolve_device
    from ..engine.inference.calibration import calibration_batches, open_split
    from ..models import removable

    device = resolve_device(args.device)
    classifier = read_classifier(args, args.model, device)
    known = removable(classifier.model, args.kind)
    for path in args.candidates or ():
        if path not in known:
            raise UserError(f"--candidates: {path!r} is no {args.kind} of {classifier.name}{nearest(path, known)}")
    if not known:
        raise UserError(f"{classifier.name} has no parts of kind {args.kind!r} to remove; choose another --kind")
    folder = Path(args.output)
    facts = {
        "model": classifier.name,
        "lacked": list(getattr(classifier.model, "removed", ())),
        "kind": args.kind,
        "metric": args.metric,
        "samples": args.samples,
        "seed": args.seed,
        "split": args.split,
        "candidates": args.candidates,
        "checkpoint": str(args.checkpoint or ""),
    }
    earlier = read_search(folder / "shedding.json", facts, args.overwrite)
    start = earlier and Shedding(args.metric, earlier["whole"], [_step(step) for step in earlier["steps"]])
    rows: list[dict[str, Any]] = list(earlier["table"]) if earlier else []
    loader = calibration_batches(
        classifier,
        open_split(classifier, args.dataset, args.data_dir, args.split),
        samples=args.samples,
        batch_size=args.batch_size,
        seed=args.seed,
        device=device,
        bad_images=args.bad_images,
    )
    validation = Validation(classifier, args, device)

    def within_budget() -> bool:
        return args.budget_gmacs is not None and bool(rows) and rows[-1]["gmacs"] <= args.budget_gmacs

    def record(found: Shedding) -> None:
        rows.append(validation.row(len(found.steps), found.removed))
        content = facts | {
            "removed": [*facts["lacked"], *found.removed],
            "whole": found.whole,
            "steps": [asdict(step) for step in found.steps],
            "table": rows,
        }
        write_text(folder / "shedding.json", json.dumps(content, indent=2) + "\n")
        write_table(folder, rows)
        print(_line(rows[-1]), flush=True)

    if not rows:
        rows.append(validation.row(0, ()))
    for row in rows:
        print(_line(row), flush=True)
    found = start
    while not within_budget() and (found is None or len(found.steps) < args.steps):
        done = 0 if found is None else len(found.steps)
        asked = done + 1 if args.budget_gmacs is not None else args.steps
        found = shed(
            classifier.model,
            loader,
            asked,
            kind=args.kind,
            metric=args.metric,
            candidates=args.candidates,
            start=found,
            on_step=record,
        )
    if found is None:
        print(f"nothing removed: the model needs {rows[0]['gmacs']:g} GMACs, within --budget-gmacs already")
        return
    if args.budget_gmacs is not None and not within_budget():
        print(f"--budget-gmacs {args.budget_gmacs:g} is not reached in {args.steps} steps; ask for more --steps")
    path = folder / "pruned.pth"
    content = pruned_checkpoint(classifier, args, found.removed)
    write_atomically(path, lambda file: torch.save(content, file))
    print(f"pruned: {path}, without {', '.join(content['removed'])}")


def pruned_checkpoint(classifier: Any, args: argparse.Namespace, removed: Sequence[str]) -> dict[str, Any]:
    """What the pruned file holds: weights of what is left, and all that rebuilds the classifier."""
    from ..engine.inference.classifier import portable_checkpoint
    from ..models import remove

    remove(classifier.model, removed)
    return portable_checkpoint(classifier, args.checkpoint, args.weights) | {"removed": list(classifier.model.removed)}


class Validation:
    """Measures a model without some parts.

    Args:
        classifier: The whole one.
        args: Options of the command.
        device: Where it runs.
    """

    def __init__(self, classifier: Any, args: argparse.Namespace, device: Any):
        from ..engine.data.loaders import create_eval_loader
        from ..engine.inference.calibration import open_split

        dataset = open_split(classifier, args.dataset, args.data_dir, args.val_split, batch_size=args.batch_size)
        self.classifier, self.args, self.device = classifier, args, device
        self.loader = create_eval_loader(
            dataset,
            classifier.data_config,
            batch_size=args.batch_size,
            workers=_auto.workers(args.workers),
            device=device,
            bad_images=args.bad_images,
            reader=classifier.reader,
        )

    def row(self, step: int, removed: Sequence[str]) -> dict[str, Any]:
        """A row of the table."""
        import torch

        from ..analysis.flops import count
        from ..compression.shedding import without
        from ..engine.inference.evaluation import evaluate
        from ..engine.inference.models import autocast
        from ._benchmarking import make_step, measure

        model, size = self.classifier.model, self.classifier.data_config["input_size"]
        with without(model, removed):
            result = evaluate(model, self.loader, self.device, autocast=autocast(self.device, None))
            cost = count(model, size)
            images = torch.randn(self.args.batch_size, *size, device=self.device)
            seconds, _ = measure(make_step(model, images, "inference", autocast(self.device, None)), self.device, 2, 5)
        return {
            "step": step,
            "removed": removed[-1] if removed else "",
            "loss": round(result["loss"], 5),
            "top1": round(result["top1"], 3),
            "param_count_m": round(cost.parameters / 1e6, 4),
            "gmacs": round(cost.multiply_adds / 1e9, 5),
            "images_per_second": round(self.args.batch_size / seconds, 1),
        }


def read_search(path: Path, facts: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """Return what an earlier call of the same search has found, or None.

    Raises:
        UserError: The folder holds another search, or a damaged file.
    """
    if overwrite or not path.exists():
        return None
    try:
        earlier = json.loads(path.read_text())
        other = [name for name in facts if earlier[name] != facts[name]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of a search; begin anew with --overwrite") from error
    if other:
        asked = ", ".join(f"{name} {earlier[name]!r}" for name in other)
        raise UserError(f"{path} is of a search with {asked}; begin anew with --overwrite, or take another --output")
    return earlier


def _step(values: Mapping[str, Any]) -> Any:
    from ..compression.shedding import SheddingStep

    return SheddingStep(**values)


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows as table.csv and table.md."""
    from ..engine.reports.rows import as_csv

    write_text(folder / "table.csv", as_csv(COLUMNS, rows))
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(str(row[name]) for name in COLUMNS)} |" for row in rows]
    write_text(folder / "table.md", "\n".join(lines) + "\n")


def _line(row: Mapping[str, Any]) -> str:
    return (
        f"{row['step']:3d}  {row['removed'] or 'whole':36s} loss {row['loss']:.4f}  top-1 {row['top1']:6.2f} %  "
        f"{row['param_count_m']:.3f} M  {row['gmacs']:.4f} GMACs  {row['images_per_second']:.0f} img/s"
    )
