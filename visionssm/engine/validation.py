"""The evaluation command: accuracy of one model or many, in one table."""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models import list_models, list_pretrained
from timm.utils import ParseKwargs

from visionssm.engine.classifier import Classifier, load_classifier
from visionssm.engine.datasets import class_names, open_dataset
from visionssm.engine.distributed import resolve_device
from visionssm.engine.errors import UserError, nearest
from visionssm.engine.evaluation import evaluate
from visionssm.engine.files import write_text
from visionssm.engine.loaders import create_eval_loader
from visionssm.engine.reporting import Progress, setup_logging

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the evaluation command; flags keep timm's names."""
    parser = argparse.ArgumentParser(
        prog="validate.py",
        description="Evaluate image classifiers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data-dir", metavar="DIR", help="data set folder")
    add("--dataset", default="", metavar="NAME", help="'' for an image folder, or a timm data set name")
    add("--split", default="validation", metavar="NAME", help="split")
    add("--class-map", default="", metavar="FILE", help="text file: class name to index")
    add(
        "--model",
        metavar="NAME",
        help="timm model name, or a pattern such as 'vmamba_*' with --pretrained; "
        "a training run's checkpoint says it itself",
    )
    add("--model-kwargs", nargs="*", default={}, action=ParseKwargs, metavar="KEY=VALUE", help="constructor arguments")
    add("--checkpoint", metavar="FILE", help="checkpoint of a run or an author's weight file")
    add("--pretrained", action="store_true", help="use the published weights")
    add("--use-ema", action="store_true", help="use the averaged weights of a run")
    add("--num-classes", type=int, metavar="N", help="classes of the model")
    add("--img-size", type=int, metavar="N", help="input height and width")
    add("--crop-pct", type=float, metavar="X", help="crop size / resized size")
    add("--crop-mode", metavar="NAME", help="center, squash or border")
    add("--interpolation", default="", metavar="NAME", help="resampling")
    add("-b", "--batch-size", type=int, default=256, metavar="N", help="images per forward pass")
    add("-j", "--workers", type=int, default=4, metavar="N", help="loader processes")
    add("--device", default="auto", metavar="NAME", help="cuda, cpu, ...; auto takes the GPU when there is one")
    add("--amp", action="store_true", help="mixed precision")
    add("--amp-dtype", choices=("float16", "bfloat16"), default="float16", help="lower precision of AMP")
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile the model")
    add(
        "--bad-images", choices=("refuse", "skip"), default="refuse", help="stop at an unreadable image or leave it out"
    )
    add("--results-file", metavar="FILE", help="write the results here")
    add("--results-format", choices=("csv", "json"), help="format of that file; by its ending when not given")
    add("--log-interval", type=int, default=10, metavar="N", help="steps between log lines")
    return parser


def evaluate_classifier(classifier: Classifier, args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Evaluate one classifier on the data that the options name.

    Returns:
        A row: model, top1, top5, loss, images per second, parameters in millions, input size, crop.

    Raises:
        UserError: The data cannot be used or does not fit the model.
    """
    config = classifier.data_config
    mode = "L" if config["input_size"][0] == 1 else "RGB"
    dataset = open_dataset(
        args.dataset,
        args.data_dir,
        args.split,
        class_map=args.class_map,
        input_img_mode=mode,
        batch_size=args.batch_size,
    )
    names = class_names(dataset)
    if names is not None and not args.class_map:
        if len(names) > classifier.model.num_classes:
            raise UserError(
                f"the data has {len(names)} classes but {classifier.name} has "
                f"{classifier.model.num_classes}; give --class-map or the right --checkpoint"
            )
    loader = create_eval_loader(
        dataset,
        config,
        batch_size=args.batch_size,
        workers=args.workers,
        device=device,
        pin_memory=device.type == "cuda",
        bad_images=args.bad_images,
    )
    model = classifier.model
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if args.torchcompile:
        model = torch.compile(model, backend=args.torchcompile)
    autocast = partial(torch.autocast, device.type, dtype=getattr(torch, args.amp_dtype)) if args.amp else nullcontext
    progress = Progress(classifier.name, len(loader), interval=args.log_interval)
    started = time.perf_counter()
    metrics = evaluate(
        model, loader, device, autocast=autocast, on_batch=progress.advance, channels_last=args.channels_last
    )
    seconds = time.perf_counter() - started
    progress.close()
    return {
        "model": classifier.name,
        "top1": round(metrics["top1"], 3),
        "top5": round(metrics["top5"], 3),
        "loss": round(metrics["loss"], 5),
        "images": progress.images,
        "images_per_second": round(progress.images / seconds, 1),
        "param_count_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 3),
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
    }


def model_names(args: argparse.Namespace) -> list[str | None]:
    """Return the models to evaluate: one, or all that a pattern matches.

    Raises:
        UserError: A pattern matches nothing, or is given together with a checkpoint.
    """
    if args.model is None or not any(char in args.model for char in "*?["):
        return [args.model]
    if args.checkpoint:
        raise UserError("--checkpoint belongs to one model, so --model cannot be a pattern")
    names = list_pretrained(args.model) if args.pretrained else list_models(args.model)
    if not names:
        raise UserError(
            f"no {'pretrained ' if args.pretrained else ''}model matches {args.model!r}"
            + nearest(args.model.strip("*"), list_models())
        )
    return names


def render(rows: list[dict[str, Any]], format_name: str) -> str:
    """Return rows as CSV or JSON."""
    if format_name == "json":
        return json.dumps(rows, indent=2) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation command and return its exit code."""
    args = build_parser().parse_args(argv)
    setup_logging()
    rows = []
    try:
        device = resolve_device(args.device)
        for name in model_names(args):
            classifier = load_classifier(
                name,
                args.checkpoint,
                use_ema=args.use_ema,
                device=device,
                pretrained=args.pretrained,
                num_classes=args.num_classes,
                model_kwargs=args.model_kwargs,
                data_options={
                    key: getattr(args, key) for key in ("img_size", "crop_pct", "crop_mode", "interpolation")
                },
            )
            row = evaluate_classifier(classifier, args, device)
            rows.append(row)
            print(
                f"{row['model']}: top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %, loss {row['loss']:.4f} on "
                f"{row['images']} images of {row['img_size']} px, {row['param_count_m']:.2f} M parameters"
            )
            if args.results_file:
                ending = Path(args.results_file).suffix.lstrip(".")
                write_text(
                    args.results_file, render(rows, args.results_format or ("json" if ending == "json" else "csv"))
                )
    except UserError as error:
        print(f"validate: {error}", file=sys.stderr)
        return 2
    return 0
