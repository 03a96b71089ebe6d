"""`visualize relevance`: what speaks for and against a class."""

import argparse
from functools import partial

from ..errors import UserError, nearest
from ._pictures import add_command, add_picture_options, attempt, check_png, read_images, read_model, save


def add_relevance(commands: argparse._SubParsersAction) -> None:
    """Add the command `relevance`."""
    parser = add_command(
        commands,
        "relevance",
        help="draw what speaks for and against a class",
        description="Relevance of every pixel for a class, conserved from the logit down (MambaLRP's rules, "
        "arXiv:2406.07592).",
    )
    parser.add_argument(
        "--class", dest="target", metavar="NAME", help="a class, by name or number (default: predicted)"
    )
    add_picture_options(parser)
    parser.set_defaults(run=run_relevance)


def run_relevance(args: argparse.Namespace) -> None:
    """Write the picture."""
    from ..analysis.pictures import draw_over_images
    from ..analysis.relevance import relevance
    from ..engine.inference.prediction import name_of

    check_png(args.output)
    classifier = read_model(args)
    target = _class_number(args.target, classifier)
    shown, maps, headings, titles = [], [], [], []
    for name, picture, images in read_images(args, classifier):
        found = attempt(partial(relevance, classifier.model, images, target, level="pixels"))
        chosen = int(found.target[0])
        shown.append(picture)
        maps.append([found.values[0]])
        logit, rest = float(found.logits[0, chosen]), float(found.rest[0])
        headings.append([f"{name_of(chosen, classifier)}: logit {logit:.2f},\nof it {rest:.2f} of biases"])
        titles.append(name)
    figure = draw_over_images(
        shown,
        maps,
        headings,
        signed=True,
        label="relevance, over the 99th percentile of its absolute values",
        titles=titles,
    )
    save(figure, args.output)


def _class_number(told: str | None, classifier) -> int | None:
    if told is None:
        return None
    count = classifier.model.num_classes
    names = classifier.classes or []
    if told in names:
        return names.index(told)
    if told.lstrip("-").isdigit():
        if not 0 <= int(told) < count:
            raise UserError(f"class {told} does not exist: {classifier.name} has classes 0 to {count - 1}")
        return int(told)
    raise UserError(f"there is no class {told!r}{nearest(told, names)}; numbers go from 0 to {count - 1}")
