"""Rows of results as files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import write_text


def as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV text; a row may lack columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]], format_name: str | None = None) -> None:
    """Write rows of equal columns.

    Args:
        path: File.
        rows: Rows.
        format_name: "csv" or "json"; None for JSON where the file's name ends so, else CSV.
    """
    as_json = (format_name or Path(path).suffix.lstrip(".")) == "json"
    write_text(path, json.dumps(list(rows), indent=2) + "\n" if as_json else as_csv(list(rows[0]), rows))
