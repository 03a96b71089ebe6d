"""`visualize attention` and `visualize contributions`: what a token of a layer takes from the others."""

import argparse
from functools import partial
from typing import Any

from ..errors import UserError
from ._pictures import add_command, add_picture_options, attempt, check_png, module_named, read_images, read_model, save

_TOKEN = "row and column of the layer's map, or: class (default: a class token, else the centre)"


def add_attention(commands: argparse._SubParsersAction) -> None:
    """Add the command `attention`."""
    parser = add_command(
        commands,
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
    parser = add_command(
        commands,
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
