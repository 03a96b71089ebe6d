"""Classify image files with a trained model: as a table, as CSV, as a picture.

python tools/predict.py PHOTOS --checkpoint RUN --output predictions.png
python tools/predict.py one.jpg two.jpg --model vmamba_tiny_s1l8 --pretrained --topk 3 --results-file predictions.csv
"""

import sys
from functools import partial

from ._boundary import bounded
from ._inference_options import add_device_options, add_image_options, add_model_options, read_classifier
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options


def build_parser() -> CommandParser:
    """Return the parser of the prediction command."""
    parser = command_parser(__name__, __doc__, usage="visionssm predict IMAGE [IMAGE ...] --checkpoint FILE [options]")
    parser.former["--csv"] = "--results-file"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders of them")
    group = parser.add_argument_group("predictions")
    add_options(group, "topk", "batch-size")
    add_options(group, "class-map", help="text file: class name to index, instead of the run's")
    add = group.add_argument
    add("--rows", type=int, default=20, metavar="N", help="rows of the printed table; every mistake is always shown")
    add("--output", metavar="PNG", help="picture of the predictions, every mistake first")
    add("--html", metavar="FILE", help="report with a thumbnail of every image, every mistake first, in one file")
    add_options(group, "results-file", "results-format")
    add_device_options(parser)
    add_model_options(parser)
    add_image_options(parser)
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the prediction command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if any(argument.split("=")[0] == "--config" for argument in arguments):
        print("predict --config is now the command openmmlab-predict", file=sys.stderr)
        from .openmmlab_predict import main as detect

        return detect(arguments)
    args = build_parser().parse_args(arguments)
    from ..engine.data.datasets import check_indices, names_by_index, read_class_map
    from ..engine.data.processes import resolve_device
    from ..engine.inference.prediction import find_images, predict, rows, table
    from ..engine.reports.html import write_report
    from ..engine.reports.plots import draw_predictions
    from ..engine.reports.progress import setup_logging
    from ..engine.reports.rows import write_rows
    from ..engine.reports.thumbnails import thumbnail

    setup_logging()
    paths = find_images(args.images)
    classifier = read_classifier(args, args.model, resolve_device(args.device))
    if args.class_map:
        classifier.class_map = read_class_map(args.class_map)
        check_indices(classifier.class_map, classifier.model.num_classes, f"--class-map {args.class_map}")
        classifier.classes = names_by_index(classifier.class_map)
    predictions = predict(classifier, paths, topk=args.topk, batch_size=args.batch_size, bad_images=args.bad_images)
    print(table(predictions, args.rows))
    known = [p for p in predictions if p.truth is not None]
    verdict = f"{len(predictions)} images"
    if known:
        right = sum(not p.wrong for p in known)
        verdict += f", {right} of {len(known)} right ({100 * right / len(known):.2f} %)"
    print(f"{classifier.name}: {verdict}")
    if args.results_file:
        write_rows(args.results_file, rows(predictions), args.results_format)
    if args.html:
        facts = [
            ("model", classifier.name),
            ("weights", args.checkpoint or ("published" if args.pretrained else "initial, untrained")),
            ("images", f"{classifier.data_config['input_size'][-1]} pixels"),
            ("result", verdict),
        ]
        write_report(predictions, args.html, title="Predictions", facts=facts, reader=classifier.reader)
        print(f"report: {args.html}")
    if args.output:
        draw_predictions(
            predictions,
            args.output,
            title=f"{classifier.name}: {verdict}, mistakes first",
            picture=partial(thumbnail, reader=classifier.reader),
        )
        print(f"picture: {args.output}")
    return 0
