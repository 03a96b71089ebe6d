"""A class token in the middle of the patch tokens, and position embeddings (1, tokens, dim) for other grids."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._timm_compat import register_notrace_function
from .ssm import state_dtype


def insert_middle_token(x: Tensor, token: Tensor) -> Tensor:
    """Put a token (1, 1, d) at index L // 2 among the patch tokens (b, L, d); returns (b, L + 1, d)."""
    middle = x.shape[1] // 2
    return torch.cat([x[:, :middle], token.expand(x.shape[0], -1, -1), x[:, middle:]], dim=1)


def middle_token(x: Tensor) -> Tensor:
    """The token (b, d) that `insert_middle_token` put among (b, L + 1, d)."""
    return x[:, (x.shape[1] - 1) // 2]


def remove_middle_token(x: Tensor) -> Tensor:
    """The patch tokens (b, L, d) among (b, L + 1, d)."""
    middle = (x.shape[1] - 1) // 2
    return torch.cat([x[:, :middle], x[:, middle + 1 :]], dim=1)


@register_notrace_function  # fx cannot follow a decision on sizes
def resample_pos_embed(
    pos_embed: Tensor,
    grid: tuple[int, int],
    new_grid: tuple[int, int],
    with_middle_token: bool,
) -> Tensor:
    """Resample a position embedding to another grid, bicubically, as plain models do on fine-tuning.

    Args:
        pos_embed: (1, tokens, d), row by row.
        grid: Rows and columns it was made for.
        new_grid: Rows and columns wanted.
        with_middle_token: The entry in the middle belongs to a class token and is kept as it is.

    Returns:
        (1, new tokens, d) in the same dtype; the argument itself if the grids are equal.
    """
    if tuple(grid) == tuple(new_grid):
        return pos_embed
    if with_middle_token:
        token = middle_token(pos_embed).unsqueeze(1)
        return insert_middle_token(_resample(remove_middle_token(pos_embed), grid, new_grid), token)
    return _resample(pos_embed, grid, new_grid)


def _resample(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    image = state_dtype(table).unflatten(1, grid).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=tuple(new_grid), mode="bicubic", align_corners=False)
    return image.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)
