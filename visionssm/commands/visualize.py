"""Draw pictures of what the models do.

python tools/visualize.py scans --order hilbert --height 8 --width 8 -o hilbert.png
python tools/visualize.py scans --order cross snake window7_flip -o three.png
python tools/visualize.py scans --order all -o FOLDER
"""

import argparse
import functools
from pathlib import Path

from ..analysis.scan_pictures import draw_scans
from ..files import write_atomically
from ..scans import check_scan, list_scans


def add_scans(commands: argparse._SubParsersAction) -> None:
    """Add the command `scans`."""
    parser = commands.add_parser("scans", help="draw the routes of scan orders")
    parser.add_argument(
        "--order",
        nargs="+",
        required=True,
        metavar="NAME",
        help="scan orders, one below the other; or: all, for a file of each (of families: k = 2)",
    )
    parser.add_argument("--height", type=int, default=8, help="rows of the map (default: 8)")
    parser.add_argument("--width", type=int, default=8, help="columns of the map (default: 8)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG file; with `--order all` a folder")
    parser.set_defaults(run=run_scans, parser=parser)


def run_scans(args: argparse.Namespace) -> None:
    """Write the pictures."""
    if args.height < 1 or args.width < 1:
        args.parser.error(f"a map has at least 1 x 1 tokens, found {args.height} x {args.width}")
    if args.order == ["all"]:
        if args.output.suffix or args.output.is_file():
            args.parser.error(f"--order all writes one file per order: expected a folder, found {args.output}")
        names = [name.replace("<k>", "2") for name in list_scans(aliases=False)]
        files = {args.output / f"{name}.png": [name] for name in names}
    else:
        if args.output.suffix.lower() != ".png":
            args.parser.error(f"expected an output file that ends in .png, found {args.output}")
        files = {args.output: args.order}
    for names in files.values():
        for name in names:
            try:
                check_scan(name)
            except ValueError as error:
                args.parser.error(str(error))
    for path, names in files.items():
        figure = draw_scans(names, args.height, args.width)
        write_atomically(path, functools.partial(figure.savefig, format="png"))
        print(path)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scans(parser.add_subparsers(required=True, metavar="COMMAND"))
    args = parser.parse_args(argv)
    args.run(args)
    return 0
