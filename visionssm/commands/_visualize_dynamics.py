"""`visualize dynamics`: how the tokens grow through the blocks."""

import argparse

from ._pictures import add_command, add_picture_options, attempt, check_png, read_images, read_model, save


def add_dynamics(commands: argparse._SubParsersAction) -> None:
    """Add the command `dynamics`."""
    parser = add_command(
        commands,
        "dynamics",
        help="draw how the tokens grow through the blocks",
        description="Norms of the tokens, rank correlation with the block before, and eigenvalues of each route's "
        "projections (token dynamics, arXiv:2410.03292); one line for each block.",
    )
    add_picture_options(parser)
    parser.set_defaults(run=run_dynamics)


def run_dynamics(args: argparse.Namespace) -> None:
    """Write the picture and print a line for each block."""
    import torch

    from ..analysis.pictures import draw_dynamics
    from ..analysis.token_dynamics import token_dynamics

    check_png(args.output)
    classifier = read_model(args)
    images = torch.cat([image for _, _, image in read_images(args, classifier)])
    layers = attempt(lambda: token_dynamics(classifier.model, images))
    for layer in layers:
        rank = "-" if layer.rank_correlation is None else f"{layer.rank_correlation:+.2f}"
        signs = ", ".join(f"{r.positive}+ {r.negative}- [{r.smallest:.2g}, {r.largest:.2g}]" for r in layer.routes)
        norms = "norms {:.3g} ({:.3g} to {:.3g})".format(*layer.after)
        print(f"{layer.name}: {norms}, rank correlation {rank}; eigenvalues by route: {signs}")
    save(draw_dynamics(layers, classifier.name), args.output)
