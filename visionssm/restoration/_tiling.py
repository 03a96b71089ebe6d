"""Images that do not fit into memory at once, piece by piece."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def tiled(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    tile: int = 256,
    overlap: int = 16,
    on_tile: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Restore an image by overlapping tiles, whose outputs are averaged with weights that fall towards their borders.

    Args:
        model: Module from (b, c, h, w) to (b, c', scale h, scale w), with one integer scale for all sizes.
        image: (b, c, h, w).
        tile: Sides of a tile, in pixels of the image; sides of the image that are no longer stay whole.
        overlap: Pixels that neighbours share at least.
        on_tile: Called after each tile with the number of tiles done and of all.

    Returns:
        (b, c', scale h, scale w).

    Raises:
        ValueError: `overlap` is negative or not below `tile`, or the model's scale is no integer.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap must be at least 0 and below tile, got overlap={overlap} and tile={tile}")
    rows, columns = (_starts(side, tile, overlap) for side in image.shape[2:])
    height, width = (min(side, tile) for side in image.shape[2:])
    total: Tensor | None = None
    weights: Tensor | None = None
    for number, (top, left) in enumerate((top, left) for top in rows for left in columns):
        piece = model(image[:, :, top : top + height, left : left + width])
        scale = piece.shape[2] // height
        if piece.shape[2:] != (scale * height, scale * width):
            raise ValueError(f"the model turns {height} x {width} into {tuple(piece.shape[2:])}: no integer scale")
        if total is None or weights is None:
            total = piece.new_zeros(*piece.shape[:2], *(scale * side for side in image.shape[2:]))
            weights = piece.new_zeros(total.shape[2:])
            window = _ramp(height, overlap, scale, piece)[:, None] * _ramp(width, overlap, scale, piece)
        place = (slice(scale * top, scale * (top + height)), slice(scale * left, scale * (left + width)))
        total[:, :, place[0], place[1]] += piece * window
        weights[place] += window
        if on_tile is not None:
            on_tile(number + 1, len(rows) * len(columns))
    assert total is not None and weights is not None
    return total / weights


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: evenly, the last one at the far end."""
    if side <= tile:
        return [0]
    count = math.ceil((side - overlap) / (tile - overlap))
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


def _ramp(side: int, overlap: int, scale: int, like: Tensor) -> Tensor:
    """Weights (scale side,), rising over the overlap from both ends and never 0."""
    steps = torch.arange(1, scale * side + 1, dtype=like.dtype, device=like.device)
    return torch.minimum(steps, steps.flip(0)).clamp(max=scale * overlap + 1)
