"""Count parameters, multiply-adds and activations of models, beside the published figures and how those were counted.

python tools/flops.py --model 'vmamba_*' resnet50 --img-size 384
python tools/flops.py --model vim_small --modules 2 --format csv --output vim_small.csv

Without a name every model of this package is counted, at its published size. A figure more than 3 % from the published
one is counted again by the rule of its paper, where that was found.
"""

import argparse
import csv
import io
import json
import shlex
import sys
from decimal import Decimal

from ..errors import UserError
from ..files import shipped, write_text
from ._boundary import bounded
from ._parser import command_parser
from ._vocabulary import add_options

FORMATS = ("text", "markdown", "csv", "json")
LARGE = 0.03  # a gap that asks for an explanation


def published() -> dict[str, dict]:
    """Published figures of every variant, from the model cards; `counting` is its paper's rule, where one was found."""
    found: dict[str, dict] = {}
    for path in sorted(shipped("model_cards").glob("*.json")):
        card = json.loads(path.read_text())
        extra = {"counting": card["counting"]} if "counting" in card else {}
        found |= {name: figures | extra for name, figures in card["variants"].items()}
    return found


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    add = parser.add_argument
    add_options(parser, "model", nargs="+", help="names or patterns of timm models, ours or others")
    parser.former_positionals = ["--model"]
    add("--img-size", type=int, nargs="+", metavar="N", help="height and width, or one for both")
    add_options(parser, "model-kwargs")
    add("--modules", type=int, metavar="DEPTH", help="a row for each module, so many levels deep")
    add("--format", choices=FORMATS, default="text", help="of the table")
    add("--output", metavar="FILE", help="write there instead of printing")
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    size = tuple((args.img_size * 2)[:2]) if args.img_size else None
    if size and (len(args.img_size) > 2 or min(size) < 1):
        raise UserError(f"--img-size takes a height and a width of at least 1, found {args.img_size}")
    if args.modules is not None and args.modules < 0:
        raise UserError(f"--modules takes a depth of at least 0, found {args.modules}")
    rows = _rows(_names(args.model), size, dict(args.model_kwargs), args.modules, quiet=not args.output)
    text = _written(rows, args.format)
    if args.output and args.format == "markdown":
        command = shlex.join(["python", "tools/flops.py", *(sys.argv[1:] if argv is None else argv)])
        text = f"# Parameters, multiply-adds and activations\n\nWritten by `{command}`.\n\n{text}"
    if args.output:
        write_text(args.output, text)
    else:
        print(text, end="")
    return 0


def _names(patterns: list[str] | None) -> list[str]:
    from .. import list_models
    from ..engine.inference.models import expand_names

    return expand_names(patterns) if patterns else list_models()


def _rows(
    names: list[str], size: tuple[int, int] | None, kwargs: dict, depth: int | None, quiet: bool
) -> list[dict[str, object]]:
    from ..analysis.counting_rules import CountingRule, count_by
    from ..analysis.flops import count_modules
    from ..engine.inference.models import create_model

    figures, rows = published(), []
    for name in names:
        model = create_model(name, device="meta", **kwargs)
        channels, *default = (model.pretrained_cfg or {}).get("input_size", (3, 224, 224))
        channels = kwargs.get("in_chans", channels)
        if size and hasattr(model, "set_input_size"):
            model = create_model(name, device="meta", **{"img_size": size} | kwargs)
        height, width = size or default
        try:
            costs = count_modules(model, (channels, height, width), depth=depth or 0)
        except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
            message = " ".join(str(error).split())
            raise UserError(f"{name} cannot be counted at {height} x {width} pixels: {message}") from error
        if depth is not None:
            rows += [_row(name, height, width, cost) | {"module": cost.name or "(all)"} for cost in costs]
            continue
        row = _row(name, height, width, costs[0])
        known = {} if size or kwargs else figures.get(name, {})
        if "gmacs" in known:
            ours, theirs = costs[0].multiply_adds / 1e9, known["gmacs"]
            row |= {"published_parameters": known.get("parameters"), "published_gmacs": theirs}
            row["gap"] = ours / theirs - 1
            # a figure of one or two digits may be as far off as that by its rounding alone
            rounding = 0.5 * 10.0 ** int(Decimal(str(theirs)).as_tuple().exponent)
            if abs(row["gap"]) > LARGE and abs(ours - theirs) <= rounding:
                row["why"] = "The published figure is rounded."
            elif abs(row["gap"]) > LARGE and "counting" in known:
                recount = count_by(CountingRule(**known["counting"]["rule"]), model, (channels, height, width)) / 1e9
                row |= {"their_rule_gmacs": recount, "their_rule_gap": recount / theirs - 1}
                row["why"] = known["counting"]["why"]
            elif abs(row["gap"]) > LARGE:
                row["why"] = "Unexplained: no rule was found that gives the published figure."
        rows.append(row)
        if not quiet:
            print(name, flush=True)
    return rows


def _row(name: str, height: int, width: int, cost) -> dict[str, object]:
    return {
        "model": name,
        "input": f"{height}x{width}",
        "parameters": cost.parameters,
        "gmacs": cost.multiply_adds / 1e9,
        "activations": cost.activations,
    }


_SHOWN = {
    "model": "model",
    "module": "module",
    "input": "input",
    "parameters": "parameters",
    "gmacs": "GMACs",
    "activations": "activations",
    "published_gmacs": "published GMACs",
    "gap": "gap",
    "their_rule_gmacs": "GMACs by their rule",
    "their_rule_gap": "gap by their rule",
}


def _cell(key: str, value: object) -> str:
    if value is None:
        return ""
    if key.endswith("gap"):
        return f"{value:+.1%}"
    if key == "published_gmacs":
        return str(value)
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _written(rows: list[dict[str, object]], form: str) -> str:
    if form == "json":
        return json.dumps(rows, indent=1) + "\n"
    keys = [key for key in _SHOWN if any(key in row for row in rows)]
    if form == "csv":
        stream = io.StringIO()
        writer = csv.DictWriter(
            stream, [*keys, "why"] if any("why" in r for r in rows) else keys, extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
        return stream.getvalue()
    table = [[_SHOWN[key] for key in keys], *([_cell(key, row.get(key)) for key in keys] for row in rows)]
    words = sum(key in ("model", "module") for key in keys)
    widths = [max(len(line[i]) for line in table) for i in range(len(keys))]
    padded = [
        [cell.ljust(w) if i < words else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in table
    ]
    if form == "markdown":
        lines = ["| " + " | ".join(line) + " |" for line in padded]
        lines.insert(1, "|" + "|".join("---" if i < words else "---:" for i in range(len(keys))) + "|")
    else:
        lines = ["  ".join(line).rstrip() for line in padded]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "why" in row:
            reasons.setdefault(str(row["why"]), []).append(f"{row['model']}")
    notes = [f"{', '.join(models)}: {why}" for why, models in reasons.items()]
    if notes:
        notes = ["", f"Gaps above {LARGE:.0%}:", "", *(f"- {note}" if form == "markdown" else note for note in notes)]
    return "\n".join([*lines, *notes, ""])
