"""Orders in which a scan visits the tokens of a map: index tables by name."""

from . import orders  # noqa: F401  registers the orders
from .registry import check_scan, list_scans, num_routes, register_scan
from .tables import (
    clear_tables,
    direction_codes,
    direction_table,
    inverse_table,
    placing_tables,
    scan_table,
    shuffled_table,
)
from .tokens import insert_token, token_positions

__all__ = [
    "check_scan",
    "clear_tables",
    "direction_codes",
    "direction_table",
    "insert_token",
    "inverse_table",
    "list_scans",
    "num_routes",
    "placing_tables",
    "register_scan",
    "scan_table",
    "shuffled_table",
    "token_positions",
]
