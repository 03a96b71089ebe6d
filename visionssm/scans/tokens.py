"""Where extra tokens (class token, registers) stand among the patch tokens, and in the tables that visit both."""

from collections.abc import Sequence

import torch
from torch import Tensor

PLACES = ("first", "middle", "last", "even")


def token_positions(num_patches: int, count: int, place: str) -> list[int]:
    """Where extra tokens stand in the whole sequence.

    Args:
        num_patches: Number of patch tokens.
        count: Number of extra tokens.
        place: "first"; "last"; "middle", after half of the patches (Vim, arXiv:2401.09417); "even", each after its
            share of the patches, the rest at the end (Mamba-Reg, arXiv:2405.14858, section 3.2).

    Raises:
        ValueError: an unknown place.
    """
    if place not in PLACES:
        raise ValueError(f"place must be one of {', '.join(map(repr, PLACES))}, got {place!r}")
    if place == "even":
        share = num_patches // (count + 1)
        return [share + i * (share + 1) for i in range(count)]
    start = {"first": 0, "middle": num_patches // 2, "last": num_patches}[place]
    return [start + i for i in range(count)]


def insert_token(table: Tensor, num_tokens: int) -> Tensor:
    """Add a class token that stands in the middle of `num_tokens` patch tokens to every route of a table.

    With the class token there are L = num_tokens + 1 tokens; its index is (L - 1) // 2, and every route reads it at
    that same step, also where padding makes the routes longer than L (LocalMamba's middle class token). On a reversed
    raster of an odd number of patches this is not the reversed sequence of all L tokens: a model that reverses those
    (Vision Mamba) asks for a map of 1 x L instead.

    Args:
        table: Integer (routes, steps) with at least num_tokens // 2 steps.
        num_tokens: Number of patch tokens.

    Returns:
        (routes, steps + 1), of the same dtype.

    Raises:
        ValueError: the table has too few steps.
    """
    return insert_at(table, token_positions(num_tokens, 1, "middle"))


def insert_at(table: Tensor, positions: Sequence[int]) -> Tensor:
    """Add tokens at positions of the whole sequence, in ascending order, to every route: each is read at that step.

    Args:
        table: Integer (routes, steps).
        positions: See `token_positions`.

    Returns:
        (routes, steps + n), of the same dtype.

    Raises:
        ValueError: the table has too few steps.
    """
    for position in positions:
        if table.ndim != 2 or table.shape[1] < position:
            raise ValueError(
                f"cannot insert a token at step {position}: expected a table (routes, steps) with at least "
                f"{position} steps, found shape {tuple(table.shape)}"
            )
        table = table + (table >= position)
        token = torch.full_like(table[:, :1], position)
        table = torch.cat([table[:, :position], token, table[:, position:]], dim=1)
    return table
