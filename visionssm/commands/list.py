"""List models, recipes or scan orders by name, with what they are.

python tools/list.py 'vmamba_*'
python tools/list.py --what recipes vmamba
"""

from ._boundary import bounded
from ._parser import CommandParser, command_parser
from ._recipes import read_recipe, recipes
from ._vocabulary import add_options

WHAT = ("models", "recipes", "scans", "networks")


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("pattern", nargs="*", metavar="PATTERN", help="names, parts of names or patterns; all if none")
    parser.add_argument(
        "--what",
        choices=WHAT,
        default="models",
        help="models with their figures; recipes of training; scan orders; networks that segment or restore",
    )
    add_options(parser, "results-file", "results-format")
    return parser


def matches(name: str, patterns: list[str]) -> bool:
    """Return whether a name matches one of the patterns, holds it, or there is none."""
    from fnmatch import fnmatch

    return not patterns or any(fnmatch(name, p) if set("*?[") & set(p) else p in name for p in patterns)


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    rows = {"models": models, "recipes": recipe_rows, "scans": scans, "networks": networks}[args.what]()
    found = [row for row in rows if matches(row["name"], args.pattern)]
    if not found:
        from ..errors import UserError, nearest

        hint = nearest(args.pattern[0], [row["name"] for row in rows])
        raise UserError(f"none of {len(rows)} {args.what} matches {' '.join(args.pattern)}{hint}")
    columns = list(found[0])
    cells = [columns, *[[str(row[column]) for column in columns] for row in found]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if args.results_file:
        from ..engine.reports.rows import write_rows

        write_rows(args.results_file, found, args.results_format)
    return 0


def models() -> list[dict[str, str]]:
    """Return a row per classifier: what its card and configuration say."""
    from timm.models import get_pretrained_cfg

    from ..models import list_models
    from ._cards import published

    figures = published()
    rows = []
    for name in list_models():
        cfg = get_pretrained_cfg(name, allow_unregistered=False)
        known = figures.get(name, {})
        rows.append(
            {
                "name": name,
                "input": "x".join(map(str, cfg.input_size[1:])) if cfg else "",
                "parameters": known.get("parameters", ""),
                "gmacs": known.get("gmacs", ""),
                "weights": "downloads" if cfg and cfg.has_weights else "",
            }
        )
    return rows


def recipe_rows() -> list[dict[str, str]]:
    """Return a row per recipe: its model and the first line of its file."""
    rows = []
    for name, path in recipes().items():
        first = path.read_text().partition("\n")[0].lstrip("# ")
        rows.append({"name": name, "model": read_recipe(path).get("model", ""), "what": first})
    return rows


def scans() -> list[dict[str, str]]:
    """Return a row per scan order."""
    from ..scans import list_scans

    return [{"name": name} for name in list_scans()]


def networks() -> list[dict[str, str]]:
    """Return a row per whole network."""
    from .. import restoration, segmentation

    return [{"name": n, "what": "segmentation"} for n in segmentation.list_models()] + [
        {"name": n, "what": "restoration"} for n in restoration.list_models()
    ]
