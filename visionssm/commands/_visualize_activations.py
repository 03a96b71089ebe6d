"""`visualize activations`: how large the outputs of the layers grow."""

import argparse

from ._pictures import add_command, add_picture_options, attempt, check_png, read_images, read_model, save
from ._vocabulary import add_options


def add_activations(commands: argparse._SubParsersAction) -> None:
    """Add the command `activations`."""
    parser = add_command(
        commands,
        "activations",
        help="draw how large the outputs of the layers grow, and where NaN begins",
        description="Deviation and largest value of what each layer puts out, and the first that is not finite.",
    )
    parser.add_argument("--half", action="store_true", help="weights and images in float16")
    add_options(parser, "results-file", "results-format")
    add_picture_options(parser)
    parser.set_defaults(run=run_activations)


def run_activations(args: argparse.Namespace) -> None:
    """Write the picture, and say where NaN begins."""
    from dataclasses import asdict

    import torch

    from ..analysis.activations import activation_statistics, first_nonfinite
    from ..analysis.pictures import draw_activations
    from ..engine.reports.rows import write_rows

    check_png(args.output)
    classifier = read_model(args)
    images = torch.cat([image for _, _, image in read_images(args, classifier)])
    model = classifier.model.half() if args.half else classifier.model
    found = attempt(lambda: activation_statistics(model, images.half() if args.half else images))
    broken = first_nonfinite(found)
    largest = max((s for s in found if s.largest == s.largest), key=lambda s: s.largest, default=None)
    if largest:
        print(f"largest value {largest.largest:.4g}: {largest.name} ({largest.type})")
    print(
        "every output is finite"
        if broken is None
        else f"first NaN or infinity: {broken.name} ({broken.type}), {broken.nonfinite} values"
    )
    if args.results_file:
        write_rows(args.results_file, [asdict(s) for s in found], args.results_format)
    save(draw_activations(found, f"{classifier.name}, {'float16' if args.half else 'float32'}"), args.output)
