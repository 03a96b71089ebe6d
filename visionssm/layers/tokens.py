"""Extra tokens (class token, registers) among patch tokens, and position embeddings for other grids."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._timm_compat import register_notrace_function
from ..scans import token_positions
from .ssm import state_dtype


def insert_tokens(x: Tensor, tokens: Tensor, count: int = 1, place: str = "middle") -> Tensor:
    """Put `count` tokens (1, n, d) among patch tokens (b, L, d); returns (b, L + n, d)."""
    tokens = tokens.expand(x.shape[0], -1, -1)
    parts, start = [], 0
    for i, position in enumerate(token_positions(x.shape[1], count, place)):
        parts += [x[:, start : position - i], tokens[:, i : i + 1]]
        start = position - i
    return torch.cat([*parts, x[:, start:]], dim=1)


def take_tokens(x: Tensor, count: int = 1, place: str = "middle") -> Tensor:
    """The tokens (b, n, d) that `insert_tokens` put among (b, L + n, d)."""
    positions = token_positions(x.shape[1] - count, count, place)
    return torch.cat([x[:, p : p + 1] for p in positions], dim=1) if count else x[:, :0]


def remove_tokens(x: Tensor, count: int = 1, place: str = "middle") -> Tensor:
    """The patch tokens (b, L, d) among (b, L + n, d)."""
    parts, start = [], 0
    for position in token_positions(x.shape[1] - count, count, place):
        parts.append(x[:, start:position])
        start = position + 1
    return torch.cat([*parts, x[:, start:]], dim=1) if parts else x


@register_notrace_function  # fx cannot follow a decision on sizes
def resample_pos_embed(
    pos_embed: Tensor,
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    count: int = 0,
    place: str = "middle",
) -> Tensor:
    """Resample a position embedding to another grid, bicubically, as plain models do on fine-tuning.

    Args:
        pos_embed: (1, tokens, d), row by row.
        grid: Rows and columns it was made for.
        new_grid: Rows and columns wanted.
        count: Number of entries that belong to extra tokens and are kept as they are.
        place: Where they stand, see `token_positions`.

    Returns:
        (1, new tokens, d) in the same dtype; the argument itself if the grids are equal.
    """
    if tuple(grid) == tuple(new_grid):
        return pos_embed
    table = _resample(remove_tokens(pos_embed, count, place), grid, new_grid)
    return insert_tokens(table, take_tokens(pos_embed, count, place), count, place) if count else table


def _resample(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    image = state_dtype(table).unflatten(1, grid).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=tuple(new_grid), mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
