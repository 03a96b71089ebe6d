"""The prediction command: classes of image files, as a table, as CSV, as a picture."""

import argparse
import sys

from timm.utils import ParseKwargs

from ...checkpoints import WEIGHTS
from ...errors import UserError
from ...files import write_text
from ..data.processes import resolve_device
from ..inference.classifier import load_classifier
from ..inference.prediction import as_csv, find_images, predict, table
from ..reports.plots import draw_predictions
from ..reports.progress import setup_logging
from .help import HelpFormatter


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the prediction command."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        usage="predict.py IMAGE [IMAGE ...] --checkpoint FILE [options]",
        description="Classify image files with a trained model.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files or folders of them")
    add("--model", metavar="NAME", help="timm model name; a training run's checkpoint says it itself")
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
    add("--img-size", type=int, metavar="N", help="input height and width")
    add("--crop-pct", type=float, metavar="X", help="crop size / resized size")
    add("--topk", type=int, default=5, metavar="N", help="classes per image")
    add("-b", "--batch-size", type=int, default=64, metavar="N", help="images per forward pass")
    add("--device", default="auto", metavar="NAME", help="cuda, cpu, ...; auto takes the GPU when there is one")
    add("--bad-images", choices=("refuse", "skip"), default="refuse", help="stop at an unreadable image or go on")
    add("--rows", type=int, default=20, metavar="N", help="rows of the printed table; every mistake is always shown")
    add("--output", metavar="PNG", help="picture of the predictions, every mistake first")
    add("--csv", metavar="FILE", help="all predictions as CSV")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the prediction command and return its exit code."""
    args = build_parser().parse_args(argv)
    setup_logging()
    try:
        paths = find_images(args.images)
        classifier = load_classifier(
            args.model,
            args.checkpoint,
            weights=args.weights,
            device=resolve_device(args.device),
            pretrained=args.pretrained,
            num_classes=args.num_classes,
            model_kwargs=args.model_kwargs,
            data_options={"img_size": args.img_size, "crop_pct": args.crop_pct},
        )
        predictions = predict(classifier, paths, topk=args.topk, batch_size=args.batch_size, bad_images=args.bad_images)
    except UserError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 2
    print(table(predictions, args.rows))
    known = [p for p in predictions if p.truth is not None]
    verdict = f"{len(predictions)} images"
    if known:
        right = sum(not p.wrong for p in known)
        verdict += f", {right} of {len(known)} right ({100 * right / len(known):.2f} %)"
    print(f"{classifier.name}: {verdict}")
    if args.csv:
        write_text(args.csv, as_csv(predictions))
    if args.output:
        draw_predictions(predictions, args.output, title=f"{classifier.name}: {verdict}, mistakes first")
        print(f"picture: {args.output}")
    return 0
