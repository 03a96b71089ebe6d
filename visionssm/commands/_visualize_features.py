"""`visualize features`: feature maps by their principal components."""

import argparse

from ._pictures import add_command, add_picture_options, attempt, check_levels, check_png, read_images, read_model, save


def add_features(commands: argparse._SubParsersAction) -> None:
    """Add the command `features`."""
    parser = add_command(
        commands,
        "features",
        help="draw feature maps by their principal components",
        description="The first three principal components of each feature map as red, green and blue.",
    )
    parser.add_argument("--level", type=int, nargs="+", metavar="N", help="feature levels, as in timm (default: all)")
    add_picture_options(parser)
    parser.set_defaults(run=run_features)


def run_features(args: argparse.Namespace) -> None:
    """Write the picture: one image."""
    import torch

    from ..analysis.feature_pictures import principal_components
    from ..analysis.pictures import draw_features

    check_png(args.output)
    classifier = read_model(args)
    model = classifier.model
    check_levels(classifier, args.level or [])
    _, picture, images = read_images(args, classifier)[0]
    with torch.no_grad():
        features = attempt(lambda: model.forward_intermediates(images, indices=args.level, intermediates_only=True))
    names = args.level or range(len(features))
    maps = {f"level {n}": principal_components(f[0]) for n, f in zip(names, features, strict=True)}
    save(draw_features(picture, maps), args.output)
