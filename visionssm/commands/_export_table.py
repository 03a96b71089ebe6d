"""Every model as an ONNX file: nodes, size, agreement and time, as a table."""

import csv
import io
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError, nearest
from ..files import write_text
from ._exporting import attempt, sized

_SECOND_SIZE = (128, 96)  # of classifiers
_DENSE_SIDES = {2: 128, 3: 64}  # of images and volumes
_HEADS = {
    "model": "model",
    "input": "input",
    "nodes": "nodes",
    "mib": "MiB",
    "difference": "difference",
    "difference_second": "of maps at the second size",
    "difference_float16": "in float16",
    "eager_ms": "eager (ms)",
    "onnxruntime_ms": "ONNX Runtime (ms)",
    "note": "note",
}


def write_table(patterns: list[str], path: Path, img_size: list[int] | None = None) -> None:
    """Export every model whose name matches a pattern, and keep the table up to date after each.

    Args:
        patterns: Shell patterns of names.
        path: The table, Markdown; the same as CSV lies beside it. Rows that the CSV has are kept.
        img_size: Height and width, or one number for both; None for a classifier's published size, and for 128 pixels
            or volumes of 64 of a dense model.

    Raises:
        UserError: no name matches.
    """
    from .. import list_models, restoration, segmentation

    classifiers, dense = list_models(), [*segmentation.list_models(), *restoration.list_models()]
    names = [name for name in [*classifiers, *dense] if any(fnmatch(name, pattern) for pattern in patterns)]
    if not names:
        known = [*classifiers, *dense]
        raise UserError(f"no model of this package matches {' '.join(patterns)}{nearest(patterns[0], known)}")
    data = path.with_suffix(".csv")
    rows: dict[str, dict[str, str]] = {}
    if data.exists():
        with open(data, newline="") as stream:
            rows = {row["model"]: row for row in csv.DictReader(stream)}
    for name in names:
        if name not in rows:
            rows[name] = _dense_row(name, img_size) if name in dense else _classifier_row(name, img_size)
            print(", ".join(f"{key} {value}" for key, value in rows[name].items()), flush=True)
            _write(path, [rows[key] for key in sorted(rows)])
    _write(path, [rows[key] for key in sorted(rows)])


def _classifier_row(name: str, img_size: list[int] | None) -> dict[str, str]:
    import timm
    from timm.models import get_pretrained_cfg

    from ..analysis.exporting import FeatureMaps

    cfg = get_pretrained_cfg(name, allow_unregistered=False)
    assert cfg is not None

    def build(size: tuple[int, ...]) -> Any:
        model: Any = timm.create_model(name, exportable=True)
        if hasattr(model, "set_input_size") and size != cfg.input_size[1:]:
            model.set_input_size(size)
        return model

    channels = cfg.input_size[0]
    size = tuple(sized(img_size, 2)) if img_size else cfg.input_size[1:]
    second = (channels, *_SECOND_SIZE)
    return _row(name, partial(build, size), lambda: FeatureMaps(build(_SECOND_SIZE)), (channels, *size), second)


def _dense_row(name: str, img_size: list[int] | None) -> dict[str, str]:
    from .. import restoration, segmentation

    package: Any = segmentation if name in segmentation.list_models() else restoration

    def build(size: tuple[int, ...]) -> Any:
        try:
            return package.create_model(name, input_size=size)  # some are tied to it
        except TypeError:
            return package.create_model(name)

    model = attempt(partial(build, (_DENSE_SIDES[2],) * 2), name)
    dims = getattr(model, "spatial_dims", 2)
    size = tuple(sized(img_size or [_DENSE_SIDES[dims]], dims))
    second = (*size[:-1], size[-1] // 2)
    return _row(name, partial(build, size), partial(build, second), (model.in_chans, *size), (model.in_chans, *second))


def _row(
    name: str,
    build: Callable[[], Any],
    build_second: Callable[[], Any],
    shape: tuple[int, ...],
    second: tuple[int, ...],
) -> dict[str, str]:
    import torch

    from ..analysis.exporting import TOLERANCES

    row = {"model": name, "input": "x".join(map(str, shape[1:]))}
    notes = []

    def check(what: str, make: Callable[[], Any], size: tuple[int, ...], dtype: Any, **kwargs: bool) -> Any:
        try:
            told = attempt(partial(_exported, make, size, dtype, **kwargs), name)
        except UserError as error:
            notes.append(f"{what}: {error}")
            return None
        if told.difference > TOLERANCES[dtype]:
            notes.append(f"{what}: refused without --tolerance")
        return told

    for column, make, size, dtype in (
        ("difference", build, shape, torch.float32),
        ("difference_second", build_second, second, torch.float32),
        ("difference_float16", build, shape, torch.float16),
    ):
        told = check(_HEADS[column], make, size, dtype, first=column == "difference")
        if told:
            row[column] = f"{told.difference:.1e}"
        if told and told.eager is not None:
            row |= {"nodes": str(told.nodes), "mib": f"{told.size / 2**20:.1f}"}
            row |= {"eager_ms": f"{1e3 * told.eager:.1f}", "onnxruntime_ms": f"{1e3 * told.runtime:.1f}"}
    if float(row.get("difference", 0)) > TOLERANCES[torch.float32] and (
        told := check("in float64", build_second, second, torch.float64, reference=True)
    ):
        notes.append(f"in float64: {told.difference:.1e}")
    return row | {"note": "; ".join(notes)}


def _exported(
    build: Callable[[], Any], shape: tuple[int, ...], dtype: Any, *, first: bool = False, reference: bool = False
) -> Any:
    import torch

    from ..analysis.exporting import export_model

    torch.manual_seed(0)
    model = build().eval().to(dtype)
    image = torch.randn(2 if first else 1, *shape).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        return export_model(
            model, image, path, dynamic_batch=first, timed=first, tolerance=float("inf"), reference=reference
        )


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    import onnxruntime
    import torch

    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(_HEADS))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path.with_suffix(".csv"), stream.getvalue())
    second = "x".join(map(str, _SECOND_SIZE))
    lines = [
        "# Models as ONNX files",
        "",
        "Written by `python tools/export.py --all PATTERN --output FILE.md`, with `--img-size N` where the input is "
        "not the published one, 128 pixels or a volume of 64; rows that a table has are kept. Weights are random. "
        "Each file was run in ONNX Runtime; differences are the largest ones of the outputs, over the spread of the "
        "model's outputs, and above 1e-4, in float16 above 3e-2, the command refuses a file. The first file has an "
        "open batch and was run with one image and with three; nodes, MiB and times are its own. The second is for "
        f"one image of another size: a classifier's for {second}, with its feature maps (`--features-only`), a dense "
        "model's for half the width, with its output. The third is for one image in float16, where the model itself "
        "is float16. Where the first is refused, a file in float64 of the second size was run in onnx's reference "
        "evaluator, to tell rounding from a mistake. Times are of one image on a CPU, the smallest of three, with "
        f"{torch.get_num_threads()} thread, torch {torch.__version__} and ONNX Runtime {onnxruntime.__version__}.",
        "",
        f"| {' | '.join(_HEADS.values())} |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cells = [row.get(key, "") or "" for key in _HEADS]
        cells[0] = f"`{cells[0]}`"
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    write_text(path, "\n".join([*lines, ""]))
