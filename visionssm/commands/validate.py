"""Evaluate image classifiers: accuracy of one model or many, in one table.

python tools/validate.py --checkpoint RUN --data-dir DIR --results-file validation.csv
python tools/validate.py --model 'vmamba_*' --pretrained --data-dir IMAGENET --plot tradeoff.png
"""

import itertools

from ._boundary import bounded
from ._inference_options import add_device_options, add_image_options, add_model_options, read_classifier
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options


def build_parser() -> CommandParser:
    """Return the parser of the evaluation command; flags keep timm's names."""
    parser = command_parser(
        __name__,
        __doc__,
        usage="visionssm validate (--checkpoint FILE | --model NAME --pretrained) --data-dir DIR [options]",
    )
    data = parser.add_argument_group("data")
    add_options(data, "data-dir", "dataset")
    data.add_argument("--split", default="validation", metavar="NAME", help="split")
    add_options(data, "labels", "val-fraction", "class-map", "input-key", "target-key")
    add_options(data, "batch-size", "workers")
    add_device_options(parser, "amp", "amp-dtype", "channels-last", "torchcompile")
    results = parser.add_argument_group("results")
    add = results.add_argument
    add_options(results, "results-file", "results-format")
    add_options(results, "plot", help="picture of top-1 against throughput and parameters")
    add(
        "--real-labels",
        nargs="?",
        const="",
        metavar="FILE",
        help="also count ImageNet ReaL labels (arXiv:2006.07159), from real.json or those that timm holds",
    )
    add("--per-class", metavar="FILE", help="write accuracy, precision and images of every class here, CSV or JSON")
    add(
        "--confusion",
        metavar="FILE",
        help="write how often each class is taken for which: counts as .csv or .json, a picture as .png",
        nargs="+",
        default=[],
    )
    add("--reliability", metavar="PNG", help="picture of accuracy against confidence")
    add("--mistakes", metavar="PNG", help="picture of the images that the model is wrong about and surest of")
    add_options(results, "log-interval")
    add_model_options(
        parser,
        model_help="timm model name, or a pattern such as 'vmamba_*' with --pretrained; a run's checkpoint says it",
    )
    add_image_options(parser, sweep=True)
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the evaluation command and return its exit code."""
    args = build_parser().parse_args(argv)
    from ..engine.data.processes import resolve_device
    from ..engine.reports.plots import draw_tradeoff
    from ..engine.reports.progress import setup_logging
    from ..engine.reports.rows import write_rows
    from ._evaluating import evaluate_classifier, model_names

    setup_logging()
    rows = []
    device = resolve_device(args.device)
    settings = itertools.product(model_names(args), args.img_size or [None], args.crop_pct or [None])
    for name, size, crop in settings:
        classifier = read_classifier(args, name, device, images={"img_size": size, "crop_pct": crop})
        row = evaluate_classifier(classifier, args, device)
        rows.append(row)
        top5 = f", top-5 {row['top5']:.2f} %" if classifier.model.num_classes > 5 else ""
        print(
            f"{row['model']}: top-1 {row['top1']:.2f} %{top5}, loss {row['loss']:.4f} on "
            f"{row['images']} images of {row['img_size']} px, crop {row['crop_pct']:g}, "
            f"{row['param_count_m']:.2f} M parameters; mean over classes {row['mean_class_top1']:.2f} %, "
            f"calibration error {row['calibration_error']:.2f} %"
        )
        if args.results_file:
            write_rows(args.results_file, rows, args.results_format)
    if args.plot:
        draw_tradeoff(rows, args.plot, f"Which model to take? {rows[0]['images']} images on {device.type}")
        print(f"picture: {args.plot}")
    return 0
