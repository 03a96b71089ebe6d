"""`visualize scans`: the routes of scan orders."""

import argparse
from functools import partial
from pathlib import Path

from ..errors import UserError
from ._pictures import add_command, attempt, check_png, save


def add_scans(commands: argparse._SubParsersAction) -> None:
    """Add the command `scans`."""
    parser = add_command(commands, "scans", help="draw the routes of scan orders, or those of a model")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--order",
        nargs="+",
        metavar="NAME",
        help="scan orders, one below the other; or: all, for a file of each (of families: k = 2)",
    )
    given.add_argument("--model", metavar="NAME", help="the scan orders of a model of this package")
    parser.add_argument("--height", type=int, default=8, help="rows of the map")
    parser.add_argument("--width", type=int, default=8, help="columns of the map")
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
