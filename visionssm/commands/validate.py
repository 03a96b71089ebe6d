"""Evaluate image classifiers: accuracy of one model or many, in one table.

python tools/validate.py --checkpoint RUN --data-dir DIR --results-file validation.csv
python tools/validate.py --model 'vmamba_*' --pretrained --data-dir IMAGENET --plot tradeoff.png
"""

import itertools

from ._boundary import bounded
from ._inference_options import add_image_options, add_model_options, read_classifier
from ._parser import CommandParser, command_parser


def build_parser() -> CommandParser:
    """Return the parser of the evaluation command; flags keep timm's names."""
    parser = command_parser(
        __name__,
        __doc__,
        usage="visionssm validate (--checkpoint FILE | --model NAME --pretrained) --data-dir DIR [options]",
    )
    add = parser.add_argument
    add("--data-dir", metavar="DIR", help="data set folder")
    add("--dataset", default="", metavar="NAME", help="'' for an image folder, or a timm data set name")
    add("--split", default="validation", metavar="NAME", help="split")
    add("--class-map", metavar="FILE", help="text file: class name to index, instead of the run's")
    add("--input-key", metavar="KEY", help="key of the image in a streamed data set, instead of the run's")
    add("--target-key", metavar="KEY", help="key of the label in a streamed data set, instead of the run's")
    add("-b", "--batch-size", type=int, default=256, metavar="N", help="images per forward pass")
    add("-j", "--workers", type=int, default=4, metavar="N", help="loader processes")
    add("--device", default="auto", metavar="NAME", help="cuda, cpu, ...; auto takes the GPU when there is one")
    add("--amp", action="store_true", help="mixed precision")
    add("--amp-dtype", choices=("float16", "bfloat16"), default="float16", help="lower precision of AMP")
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--torchcompile", nargs="?", const="inductor", metavar="BACKEND", help="compile the model")
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
    add("--per-class", metavar="CSV", help="write accuracy, precision and images of every class here")
    add(
        "--confusion",
        metavar="FILE",
        help="write how often each class is taken for which: counts as .csv, a picture as .png",
        nargs="+",
        default=[],
    )
    add("--log-interval", type=int, default=10, metavar="N", help="steps between log lines")
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
        print(
            f"{row['model']}: top-1 {row['top1']:.2f} %, top-5 {row['top5']:.2f} %, loss {row['loss']:.4f} on "
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
