"""`visualize erf`: effective receptive fields of several models."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ._pictures import add_command, attempt, check_levels, check_png, save
from ._vocabulary import add_options

SHARES = (0.2, 0.3, 0.5, 0.9, 0.99)


def add_erf(commands: argparse._SubParsersAction) -> None:
    """Add the command `erf`."""
    parser = add_command(
        commands,
        "erf",
        help="draw effective receptive fields side by side",
        description="How much each pixel moves the centre of the last feature map, mean over images (VMamba's "
        "protocol, arXiv:2401.10166), for several models, ours or timm's; prints the central squares that hold shares.",
    )
    add = parser.add_argument
    add_options(parser, "model", nargs="+", default=[], help="timm model names, with random or published weights")
    add_options(parser, "checkpoint", nargs="+", default=[], help="checkpoints of runs, which say their model")
    add_options(parser, "pretrained", help="use the published weights for --model")
    add_options(parser, "data-dir", required=True, help="data set, or folder of images")
    add("--split", default="validation", metavar="NAME", help="split of it")
    add_options(parser, "img-size", help="height and width (default: 1024; of a checkpoint, the run's)")
    add("--level", type=int, default=-1, metavar="N", help="feature level, as in timm; -1 is the last")
    add("--samples", type=int, default=50, metavar="N", help="images, drawn at random")
    add_options(parser, "device")
    add_options(parser, "seed", default=0, help="fixes the drawn images and random weights")
    add("-o", "--output", type=Path, required=True, metavar="PNG", help="picture to write")
    parser.former["--images"] = "--samples"
    parser.set_defaults(run=run_erf)


def run_erf(args: argparse.Namespace) -> None:
    """Write the picture and print the table."""
    import torch

    from ..analysis.pictures import draw_receptive_fields
    from ..analysis.receptive_field import central_square, receptive_field
    from ..engine.data.processes import resolve_device
    from ..engine.inference.classifier import load_classifier

    check_png(args.output)
    if not args.model and not args.checkpoint:
        raise UserError("neither --model nor --checkpoint given")
    if args.samples < 1 or (args.img_size is not None and args.img_size < 1):
        raise UserError(f"--samples and --img-size take at least 1, found {args.samples} and {args.img_size}")
    device = resolve_device(args.device)
    fields: dict[str, torch.Tensor] = {}
    wanted: list[tuple[str | None, str | None]] = [(name, None) for name in args.model]
    wanted += [(None, file) for file in args.checkpoint]
    for name, file in wanted:
        torch.manual_seed(args.seed)
        size = args.img_size or (None if args.checkpoint else 1024)
        classifier = load_classifier(name, file, pretrained=args.pretrained, data_options={"img_size": size})
        model: Any = classifier.model
        config = classifier.data_config
        side = tuple(config["input_size"][1:])
        if hasattr(model, "set_input_size") and tuple(getattr(model, "img_size", side)) != side:
            attempt(partial(model.set_input_size, side))
        check_levels(classifier, [args.level])
        source = "trained" if file else "published weights" if args.pretrained else "random weights"
        images = _drawn_images(args, classifier)
        field = attempt(partial(receptive_field, model.to(device), [x.to(device) for x in images], index=args.level))
        heading = f"{classifier.name}, {source}"
        if heading in fields:
            heading += f" ({Path(file).parent.name if file else len(fields)})"
        fields[heading] = field
    print("| model | pixels | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
    print("|---|---|" + "---|" * len(SHARES))
    for heading, field in fields.items():
        squares = [central_square(field, share) for share in SHARES]
        cells = ["none" if s is None else f"{s[0]} px, {s[1]:.1%}" for s in squares]
        print(f"| {heading} | {field.shape[0]} x {field.shape[1]} | {' | '.join(cells)} |")
    save(draw_receptive_fields(fields), args.output)


def _drawn_images(args: argparse.Namespace, classifier) -> list:
    """Images of the split, drawn without replacement: the shorter side brought to the size, the centre cut out."""
    import torch
    from timm.data import create_transform

    from ..engine.data.images import ChannelTransform
    from ..engine.inference.prediction import find_images

    folder = Path(args.data_dir) / args.split
    paths = find_images([folder if folder.is_dir() else args.data_dir])
    generator = torch.Generator().manual_seed(args.seed)
    chosen = torch.randperm(len(paths), generator=generator)[: args.samples].tolist()
    if len(chosen) < args.samples:
        print(f"{len(paths)} images in {args.data_dir}: all of them are taken", file=sys.stderr)
    config = classifier.data_config
    transform = ChannelTransform(
        create_transform(config["input_size"], interpolation=config["interpolation"], crop_pct=1.0, use_prefetcher=True)
    )
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    images = []
    for index in chosen:
        pixels = torch.as_tensor(transform(classifier.reader.read(paths[index], str(paths[index])))).float() / 255
        images.append(((pixels - mean) / std)[None])
    return images
