"""Compare runs of training: one table and one picture, with what differs between them.

python tools/compare.py work/cross work/hilbert work/spiral --plot compare.png
python tools/compare.py work/* --results-file compare.csv
"""

from pathlib import Path
from typing import Any

from ._boundary import bounded
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options

# where a run lies and how fast it was read says nothing about the run
NOT_COMPARED = {"output", "experiment", "overwrite", "resume", "config", "log_interval", "workers", "recovery_interval"}
NOT_COMPARED |= {"checkpoint_hist", "no_resume_opt", "log_tensorboard", "log_wandb", "wandb_project", "debug"}


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument(
        "--eval-metric",
        metavar="NAME",
        help="what is compared: top1, top5, loss, or a column of summary.csv, of averaged weights where there are any; "
        "what the first run chose its best epoch by when not given",
    )
    add_options(parser, "results-file", "results-format")
    add_options(parser, "plot", help="picture of the metric over the epochs, a line for each run")
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    runs = {name: read_run(folder) for name, folder in labels(args.runs).items()}
    metric = args.eval_metric or next(iter(runs.values()))[0].get("eval_metric", "top1")
    differing = differences({name: options for name, (options, _) in runs.items()})
    rows: list[dict[str, Any]] = []
    lines = {}
    for name, (options, epochs) in runs.items():
        column = column_of(metric, epochs, name)
        points = [row for row in epochs if row.get(column) == row.get(column)]  # NaN where an epoch was not evaluated
        best = (min if "loss" in column else max)(points, key=lambda row: row[column])
        rows.append(
            {"run": name}
            | {key: options.get(key) for key in differing}
            | {
                f"best_{metric}": round(best[column], 4),
                "in_epoch": int(best["epoch"]),
                f"last_{metric}": round(points[-1][column], 4),
                "epochs": len(epochs),
                "train_loss": round(epochs[-1]["train_loss"], 4),
            }
        )
        lines[name] = [{"epoch": row["epoch"], column: row[column], "metric": row[column]} for row in points]
    rows.sort(key=lambda row: row[f"best_{metric}"], reverse="loss" not in metric)
    for line in table(rows):
        print(line)
    if not differing:
        print("no option differs between them")
    if args.results_file:
        from ..engine.reports.rows import write_rows

        write_rows(args.results_file, rows, args.results_format)
    if args.plot:
        from ..engine.reports.plots import draw_lines

        told = f"{metric} of {len(rows)} runs, which differ in {', '.join(differing) or 'nothing'}"
        draw_lines(lines, "epoch", "epoch", [("metric", f"validation {metric}")], args.plot, told, from_zero=False)
        print(f"picture: {args.plot}")
    return 0


def labels(folders: list[str]) -> dict[str, Path]:
    """Return names of folders, as short as tells them apart."""
    paths = [Path(folder) for folder in dict.fromkeys(folders)]
    short = {path.resolve().name: path for path in paths}
    return short if len(short) == len(paths) else {str(path): path for path in paths}


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return a run's options and the rows of its epochs.

    Raises:
        UserError: It is no folder of a run, or no epoch of it is done.
    """
    import yaml

    from ..engine.reports.progress import read_summary
    from ..errors import UserError

    missing = [name for name in ("args.yaml", "summary.csv") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is no folder of a run with a finished epoch: it has no {' and no '.join(missing)}")
    epochs = read_summary(folder / "summary.csv")
    if not epochs:
        raise UserError(f"{folder} has no finished epoch")
    return yaml.safe_load((folder / "args.yaml").read_text()), epochs


def differences(options: dict[str, dict[str, Any]]) -> list[str]:
    """Return the options in which runs differ, the model and its arguments first."""
    names = sorted({name for told in options.values() for name in told} - NOT_COMPARED)
    names.sort(key=lambda name: name not in ("model", "model_kwargs"))
    return [name for name in names if len({repr(told.get(name)) for told in options.values()}) > 1]


def column_of(metric: str, epochs: list[dict[str, float]], run: str) -> str:
    """Return the column of a metric in a run's summary.

    Raises:
        UserError: It has none.
    """
    from ..errors import UserError, nearest

    for name in (f"eval_ema_{metric}", f"eval_{metric}", metric):
        if any(row.get(name) == row.get(name) and name in row for row in epochs):
            return name
    known = [name.removeprefix("eval_") for name in epochs[0]]
    raise UserError(f"run {run} has no {metric!r}{nearest(metric, known)}")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a table of rows with equal columns."""
    columns = list(rows[0])
    cells = [columns, *[[short(row[column]) for column in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def short(value: Any) -> str:
    """Return a value as a cell of a table."""
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items()) or "-"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
