"""The evaluation command: accuracy of one model or many, in one table."""

import argparse
import itertools
import logging
import sys
from collections.abc import Sequence
from typing import Any

import torch
from timm.data import RealLabelsImagenet
from timm.utils import ParseKwargs

from ...checkpoints import WEIGHTS
from ...errors import UserError
from ..data.datasets import class_names, image_mode, open_dataset
from ..data.loaders import create_eval_loader
from ..data.processes import resolve_device
from ..data.workers import loader_processes_ended
from ..inference.classifier import Classifier, load_classifier
from ..inference.evaluation import evaluate
from ..inference.models import autocast, expand_names
from ..reports.plots import draw_tradeoff
from ..reports.progress import Progress, setup_logging
from ..reports.rows import write_rows
from .help import HelpFormatter

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the evaluation command; flags keep timm's names."""
    parser = argparse.ArgumentParser(
        prog="validate.py",
        usage="validate.py (--checkpoint FILE | --model NAME --pretrained) --data-dir DIR [options]",
        description="Evaluate image classifiers.",
        formatter_class=HelpFormatter,
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
    add(
        "--weights",
        choices=WEIGHTS,
        default="auto",
        help="which weights of the file; auto takes the averaged ones where there are any",
    )
    add("--use-ema", dest="weights", action="store_const", const="ema", help="the same as --weights ema")
    add("--num-classes", type=int, metavar="N", help="classes of the model")
    add("--img-size", nargs="+", type=int, metavar="N", help="input height and width; several sweep it")
    add("--crop-pct", nargs="+", type=float, metavar="X", help="crop size / resized size; several sweep it")
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
    add(
        "--real-labels",
        nargs="?",
        const="",
        metavar="FILE",
        help="also count ImageNet ReaL labels (arXiv:2006.07159), from real.json or those that timm holds",
    )
    add("--plot", metavar="PNG", help="picture of top-1 against throughput and parameters")
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
    dataset = open_dataset(
        args.dataset,
        args.data_dir,
        args.split,
        class_map=args.class_map,
        input_img_mode=image_mode(config["input_size"][0]),
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
    real = None if args.real_labels is None else real_labels(dataset, args)
    progress = Progress(classifier.name, len(loader), interval=args.log_interval)

    def on_batch(logits: torch.Tensor) -> None:
        progress.advance(len(logits))
        if real is not None:
            real.add_result(logits)

    with loader_processes_ended():
        metrics = evaluate(
            model,
            loader,
            device,
            autocast=autocast(device, args.amp_dtype if args.amp else None),
            on_batch=on_batch,
            channels_last=args.channels_last,
        )
    rate = progress.rate()
    progress.close()
    extra = {} if real is None else {f"real_top{k}": round(value, 3) for k, value in real.get_accuracy().items()}
    return {
        "model": classifier.name,
        "top1": round(metrics["top1"], 3),
        "top5": round(metrics["top5"], 3),
        "loss": round(metrics["loss"], 5),
        "images": progress.images,
        "images_per_second": round(rate, 1),
        "param_count_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 3),
        "img_size": config["input_size"][-1],
        "crop_pct": config["crop_pct"],
        "interpolation": config["interpolation"],
        **extra,
    }


def real_labels(dataset: torch.utils.data.Dataset, args: argparse.Namespace) -> RealLabelsImagenet:
    """Return timm's counter of ImageNet ReaL labels.

    Raises:
        UserError: The data is not ImageNet's validation set in whole, or the file cannot be read.
    """
    if args.bad_images == "skip":
        raise UserError("--real-labels counts every image, so it does not go with --bad-images skip")
    if not hasattr(dataset, "filenames") or len(dataset) != 50000:
        raise UserError(f"--real-labels needs ImageNet's 50000 validation images, found {len(dataset)}")
    try:
        return RealLabelsImagenet(dataset.filenames(basename=True), real_json=args.real_labels or None)
    except (OSError, ValueError) as error:
        raise UserError(f"ReaL labels {args.real_labels} cannot be read: {error}") from error


def model_names(args: argparse.Namespace) -> Sequence[str | None]:
    """Return the models to evaluate: one, or all that a pattern matches.

    Raises:
        UserError: A pattern matches nothing, or is given together with a checkpoint.
    """
    if args.model is None:
        return [None]
    if args.checkpoint and any(char in args.model for char in "*?["):
        raise UserError("--checkpoint belongs to one model, so --model cannot be a pattern")
    return expand_names([args.model], args.pretrained)


def main(argv: list[str] | None = None) -> int:
    """Run the evaluation command and return its exit code."""
    args = build_parser().parse_args(argv)
    setup_logging()
    rows = []
    try:
        device = resolve_device(args.device)
        settings = itertools.product(model_names(args), args.img_size or [None], args.crop_pct or [None])
        for name, size, crop in settings:
            classifier = load_classifier(
                name,
                args.checkpoint,
                weights=args.weights,
                device=device,
                pretrained=args.pretrained,
                num_classes=args.num_classes,
                model_kwargs=args.model_kwargs,
                data_options={
                    "img_size": size,
                    "crop_pct": crop,
                    "crop_mode": args.crop_mode,
                    "interpolation": args.interpolation or None,
                },
            )
            row = evaluate_classifier(classifier, args, device)
            rows.append(row)
            print(
                f"{row['model']}: top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %, loss {row['loss']:.4f} on "
                f"{row['images']} images of {row['img_size']} px, crop {row['crop_pct']:g}, "
                f"{row['param_count_m']:.2f} M parameters"
            )
            if args.results_file:
                write_rows(args.results_file, rows, args.results_format)
        if args.plot:
            draw_tradeoff(rows, args.plot, f"Which model to take? {rows[0]['images']} images on {device.type}")
            print(f"picture: {args.plot}")
    except UserError as error:
        print(f"validate: {error}", file=sys.stderr)
        return 2
    return 0
