"""Rows of results as files."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any


def render(rows: Sequence[dict[str, Any]], format_name: str) -> str:
    """Return rows of equal columns as "csv" or "json" text."""
    if format_name == "json":
        return json.dumps(list(rows), indent=2) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
