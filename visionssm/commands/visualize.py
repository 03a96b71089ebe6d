"""Draw pictures of what the models do.

python tools/visualize.py scans --order cross snake window7_flip -o three.png
python tools/visualize.py scans --order all -o FOLDER
python tools/visualize.py erf --model vmamba_tiny_s1l8 resnet50 --pretrained --data-dir IMAGENET -o erf.png
python tools/visualize.py attention IMAGE --checkpoint last.pth.tar --layer stages.2.blocks.0.mixer --token 1 1 -o a.png
python tools/visualize.py contributions IMAGE --model vim_tiny --pretrained --layer blocks.12 -o contributions.png
python tools/visualize.py relevance IMAGE --checkpoint last.pth.tar -o relevance.png
python tools/visualize.py features IMAGE --model vmamba_tiny_s1l8 --pretrained -o features.png
python tools/visualize.py activations IMAGE --model vmamba_tiny_s1l8 --half -o activations.png
python tools/visualize.py dynamics IMAGE --model vim_tiny --pretrained -o dynamics.png

Each command explains its options: python tools/visualize.py erf --help.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from ._boundary import bounded
from ._parser import command_parser
from ._pictures import (
    add_picture_options,
    attempt,
    check_png,
    module_named,
    read_images,
    read_model,
    save,
)
from ._vocabulary import add_options

_TOKEN = "row and column of the layer's map, or: class (default: a class token, else the centre)"
SHARES = (0.2, 0.3, 0.5, 0.9, 0.99)


def add_scans(commands: argparse._SubParsersAction) -> None:
    """Add the command `scans`."""
    parser = commands.add_parser("scans", help="draw the routes of scan orders, or those of a model")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--order",
        nargs="+",
        metavar="NAME",
        help="scan orders, one below the other; or: all, for a file of each (of families: k = 2)",
    )
    given.add_argument("--model", metavar="NAME", help="the scan orders of a model of this package")
    parser.add_argument("--height", type=int, default=8, help="rows of the map (default: 8)")
    parser.add_argument("--width", type=int, default=8, help="columns of the map (default: 8)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG file; with `--order all` a folder")
    parser.set_defaults(run=run_scans)


def run_scans(args: argparse.Namespace) -> None:
    """Write the pictures."""
    from ..analysis.scan_pictures import draw_scans
    from ..scans import check_scan, list_scans

    if args.height < 1 or args.width < 1:
        raise UserError(f"a map has at least 1 x 1 tokens, found {args.height} x {args.width}")
    if args.order == ["all"]:
        if args.output.suffix or args.output.is_file():
            raise UserError(f"--order all writes one file per order: expected a folder, found {args.output}")
        names = [name.replace("<k>", "2") for name in list_scans(aliases=False)]
        files = {args.output / f"{name}.png": [name] for name in names}
    else:
        check_png(args.output)
        files = {args.output: args.order or _orders_of(args.model)}
    for names in files.values():
        for name in names:
            attempt(partial(check_scan, name))
    for path, names in files.items():
        save(draw_scans(names, args.height, args.width), path, trim=False)


def _orders_of(name: str) -> list[str]:
    """The orders that the layers of a model ask for, each once, in the order of the layers."""
    from ..engine.inference.models import create_model

    model = create_model(name, device="meta")
    orders = [scan for module in model.modules() if isinstance(scan := getattr(module, "scan", None), str)]
    if not orders:
        raise UserError(f"no layer of {name} names a scan order")
    return list(dict.fromkeys(orders))


def add_erf(commands: argparse._SubParsersAction) -> None:
    """Add the command `erf`."""
    parser = commands.add_parser(
        "erf",
        help="draw effective receptive fields side by side",
        description="How much each pixel moves the centre of the last feature map, mean over images (VMamba's "
        "protocol, arXiv:2401.10166), for several models, ours or timm's; prints the central squares that hold shares.",
    )
    add = parser.add_argument
    add("--model", nargs="+", default=[], metavar="NAME", help="timm model names, with random or published weights")
    add("--checkpoint", nargs="+", default=[], metavar="PATH", help="checkpoints of runs, which say their model")
    add("--pretrained", action="store_true", help="use the published weights for --model")
    add("--data-dir", required=True, metavar="DIR", help="data set, or folder of images")
    add("--split", default="validation", metavar="NAME", help="split of it (default: validation)")
    add("--img-size", type=int, metavar="N", help="height and width (default: 1024; of a checkpoint, the run's)")
    add("--level", type=int, default=-1, metavar="N", help="feature level, as in timm (default: -1, the last)")
    add("--images", type=int, default=50, metavar="N", help="images, drawn at random (default: 50)")
    add("--device", default="auto", metavar="NAME", help="cuda, cpu, ...; auto takes the GPU when there is one")
    add("--seed", type=int, default=0, metavar="N", help="fixes the drawn images and random weights (default: 0)")
    add("-o", "--output", type=Path, required=True, metavar="PNG", help="picture to write")
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
    if args.images < 1 or (args.img_size is not None and args.img_size < 1):
        raise UserError(f"--images and --img-size take at least 1, found {args.images} and {args.img_size}")
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
        _check_levels(classifier, [args.level])
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
    chosen = torch.randperm(len(paths), generator=generator)[: args.images].tolist()
    if len(chosen) < args.images:
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


def add_attention(commands: argparse._SubParsersAction) -> None:
    """Add the command `attention`."""
    parser = commands.add_parser(
        "attention",
        help="draw what a token takes from the others in a scan",
        description="The scan of a layer as an attention matrix (arXiv:2403.01590), or with convolution and gate "
        "(arXiv:2405.16504, for Mamba's mixers): one token's row, summed over channels by absolute value.",
    )
    parser.add_argument("--layer", metavar="NAME", help="a mixer, such as blocks.3.mixer (default: the last)")
    parser.add_argument("--route", type=int, metavar="K", help="a route (default: each, and all together)")
    parser.add_argument("--token", nargs="+", metavar="N", help=_TOKEN)
    parser.add_argument("--unified", action="store_true", help="with convolution and gate")
    add_picture_options(parser)
    parser.set_defaults(run=run_attention)


def run_attention(args: argparse.Namespace) -> None:
    """Write the picture."""
    from ..analysis.hidden_attention import token_attention
    from ..layers import SelectiveSSM

    check_png(args.output)
    classifier = read_model(args)
    model = classifier.model
    scanning = [
        name
        for name, module in model.named_modules()
        if any(isinstance(child, SelectiveSSM) for child in module.children())
    ]
    layer_name = module_named(model, args.layer, scanning, "a selective scan")
    layer = model.get_submodule(layer_name)
    routes = next(child.routes for child in layer.children() if isinstance(child, SelectiveSSM))
    if args.route is not None and not 0 <= args.route < routes:
        raise UserError(f"route {args.route} does not exist: {layer_name} has routes 0 to {routes - 1}")
    each = range(routes) if routes > 1 else ()
    chosen: list[int | None] = [None, *each] if args.route is None else [args.route]

    def rows(token: int, x, rest) -> dict:
        return {
            "all routes" if route is None else f"route {route}": token_attention(
                layer, x, *rest, token=token, route=route, unified=args.unified
            )[0]
            .abs()
            .sum(0)
            for route in chosen
        }

    kind = "unified" if args.unified else "hidden"
    label = f"{kind} attention: absolute values summed over channels, over the largest"
    _draw_tokens(args, classifier, layer_name, rows, label)


def add_contributions(commands: argparse._SubParsersAction) -> None:
    """Add the command `contributions`."""
    parser = commands.add_parser(
        "contributions",
        help="draw which tokens make up a token's output in a block",
        description="What each input token contributes to one output token of a block, skip connection included (the "
        "idea of LaTIM, arXiv:2502.15612, made exact): shares that sum to 1.",
    )
    parser.add_argument("--layer", metavar="NAME", help="a block, such as blocks.3 (default: the last)")
    parser.add_argument("--token", nargs="+", metavar="N", help=_TOKEN)
    add_picture_options(parser)
    parser.set_defaults(run=run_contributions)


def run_contributions(args: argparse.Namespace) -> None:
    """Write the picture."""
    from torch import nn

    from ..analysis.contributions import contributions

    check_png(args.output)
    classifier = read_model(args)
    model = classifier.model
    blocks = [name for name, module in model.named_modules() if isinstance(getattr(module, "mixer", None), nn.Module)]
    layer_name = module_named(model, args.layer, blocks, "a mixer in it")
    layer = model.get_submodule(layer_name)

    def rows(token: int, x, rest) -> dict:
        return {"contributions": contributions(layer, x, *rest, rows=[token]).matrix[0, 0]}

    _draw_tokens(args, classifier, layer_name, rows, "share of the output, over the largest")


def _draw_tokens(args: argparse.Namespace, classifier, layer_name: str, rows, label: str) -> None:
    """Draw what `rows(token, input, further inputs)` gives for the chosen token of a layer, over each image."""
    import torch

    from ..analysis.pictures import draw_over_images

    model, layer = classifier.model, classifier.model.get_submodule(layer_name)
    shown, maps, headings, marks, titles = [], [], [], [], []
    for name, picture, images in read_images(args, classifier):
        given: dict[str, Any] = {}

        def keep(module, inputs, given=given) -> None:
            given.setdefault("inputs", inputs)

        handle = layer.register_forward_pre_hook(keep)
        try:
            with torch.no_grad():
                model(images)
        finally:
            handle.remove()
        x, *rest = given["inputs"]
        grid, positions, extra = _tokens_of(model, x, rest)
        token, place = _token(args.token, grid, positions, extra, layer_name)
        found = attempt(partial(rows, token, x, rest))
        shown.append(picture)
        maps.append([row[positions].view(grid) for row in found.values()])
        headings.append(list(found))
        h, w = picture.shape[:2]
        marks.append(((place[0] + 0.5) * h / grid[0] - 0.5, (place[1] + 0.5) * w / grid[1] - 0.5) if place else None)
        titles.append(f"{name}\n{layer_name}, token {' '.join(map(str, place)) if place else 'class'}")
    figure = draw_over_images(shown, maps, headings, signed=False, label=label, marks=marks, titles=titles)
    save(figure, args.output)


def _tokens_of(model, x, rest) -> tuple[tuple[int, int], Any, list[int]]:
    """Grid of a layer's map, the indices of its tokens row by row, and those of extra tokens."""
    import torch

    if x.ndim == 4:  # a map (b, h, w, d)
        grid = (x.shape[1], x.shape[2])
        return grid, torch.arange(grid[0] * grid[1]), []
    if len(rest) >= 2 and all(isinstance(value, int) for value in rest[:2]):
        grid = (int(rest[0]), int(rest[1]))
        if hasattr(model, "split_tokens"):
            numbers = torch.arange(x.shape[1])[None, :, None]
            patches, extra = model.split_tokens(numbers)
            if patches.shape[1] == grid[0] * grid[1]:
                return grid, patches.flatten(), extra.flatten().tolist()
        if x.shape[1] == grid[0] * grid[1]:
            return grid, torch.arange(x.shape[1]), []
    raise UserError("the layer's tokens are not those of one map: choose another --layer")


def _token(
    told: list[str] | None, grid: tuple[int, int], positions, extra: list[int], layer: str
) -> tuple[int, tuple[int, int] | None]:
    """Index of the chosen token, and its row and column if it is a patch."""
    if told == ["class"] or (told is None and extra):
        if not extra:
            raise UserError(f"{layer} has no class token: give --token a row and a column")
        return extra[0], None
    try:
        row, column = (grid[0] // 2, grid[1] // 2) if told is None else map(int, told)
    except ValueError:
        raise UserError(f"--token takes a row and a column, or: class; found {' '.join(told or [])}") from None
    if not (0 <= row < grid[0] and 0 <= column < grid[1]):
        raise UserError(f"token {row} {column} does not exist: the map of {layer} has {grid[0]} x {grid[1]} tokens")
    return int(positions[row * grid[1] + column]), (row, column)


def add_relevance(commands: argparse._SubParsersAction) -> None:
    """Add the command `relevance`."""
    parser = commands.add_parser(
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
    from ..errors import nearest

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


def add_features(commands: argparse._SubParsersAction) -> None:
    """Add the command `features`."""
    parser = commands.add_parser(
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
    _check_levels(classifier, args.level or [])
    _, picture, images = read_images(args, classifier)[0]
    with torch.no_grad():
        features = attempt(lambda: model.forward_intermediates(images, indices=args.level, intermediates_only=True))
    names = args.level or range(len(features))
    maps = {f"level {n}": principal_components(f[0]) for n, f in zip(names, features, strict=True)}
    save(draw_features(picture, maps), args.output)


def _check_levels(classifier, levels: list[int]) -> None:
    model = classifier.model
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"{classifier.name} has no feature maps (forward_intermediates)")
    count = len(model.feature_info)
    for level in levels:
        if not -count <= level < count:
            raise UserError(f"feature level {level} does not exist: {classifier.name} has levels 0 to {count - 1}")


def add_activations(commands: argparse._SubParsersAction) -> None:
    """Add the command `activations`."""
    parser = commands.add_parser(
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


def add_dynamics(commands: argparse._SubParsersAction) -> None:
    """Add the command `dynamics`."""
    parser = commands.add_parser(
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


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = command_parser(__name__, __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_scans,
        add_erf,
        add_attention,
        add_contributions,
        add_relevance,
        add_features,
        add_activations,
        add_dynamics,
    ):
        add(commands)
    args = parser.parse_args(argv)
    args.run(args)
    return 0
