"""Masks of cells, and the loss over what they hide (masked image modelling; MambaMIM, arXiv:2408.08070)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def random_mask(
    batch: int, cells: int, ratio: float = 0.75, generator: torch.Generator | None = None, device=None
) -> Tensor:
    """Which cells of each image are visible: (b, cells) bool, round(cells * (1 - ratio)) of each row.

    Raises:
        ValueError: the ratio is not from 0 to below 1, or nothing would be visible.
    """
    if not 0.0 <= ratio < 1.0:
        raise ValueError(f"the share of hidden cells must be from 0 to below 1, got {ratio}")
    kept = round(cells * (1 - ratio))
    if kept < 1:
        raise ValueError(f"{ratio} of {cells} cells hidden leaves none visible")
    order = torch.rand(batch, cells, generator=generator, device=device).argsort(1)
    return torch.zeros(batch, cells, dtype=torch.bool, device=device).scatter(1, order[:, :kept], True)


def patchify(x: Tensor, cell: int) -> Tensor:
    """Cut images or volumes (b, c, *size) into cells of one side: (b, cells, cell^n c), both row by row, channels last.

    Raises:
        ValueError: a side is no multiple of the cell.
    """
    size = x.shape[2:]
    if not size or any(side % cell for side in size):
        raise ValueError(f"sides must be multiples of the cell {cell}, got {tuple(size)}")
    n = len(size)
    x = x.reshape(*x.shape[:2], *(part for side in size for part in (side // cell, cell)))
    x = x.permute(0, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2), 1)
    return x.flatten(1 + n).flatten(1, n)


def unpatchify(x: Tensor, cell: int, size: Sequence[int]) -> Tensor:
    """Put the cells of `patchify` (b, cells, cell^n c) together to (b, c, *size).

    Raises:
        ValueError: the cells are not those of such a size.
    """
    n, grid = len(size), [side // cell for side in size]
    count = torch.Size(grid).numel()
    if any(side % cell for side in size) or x.shape[1] != count or x.shape[2] % cell**n:
        raise ValueError(f"{tuple(x.shape)} are not the cells of side {cell} of a size {tuple(size)}")
    x = x.reshape(x.shape[0], *grid, *[cell] * n, -1)
    x = x.permute(0, 1 + 2 * n, *(axis for i in range(n) for axis in (1 + i, 1 + n + i)))
    return x.reshape(*x.shape[:2], *size)


def cell_errors(found: Tensor, target: Tensor, cell: int) -> Tensor:
    """Mean squared error of each cell (b, cells), against a target that is normalised cell by cell.

    Args:
        found: Reconstruction (b, c, *size).
        target: Images or volumes of that shape; each cell loses its mean and is divided by its standard deviation.
        cell: Side of a cell.

    Raises:
        ValueError: shapes differ, or a side is no multiple of the cell.
    """
    if found.shape != target.shape:
        raise ValueError(f"the reconstruction has shape {tuple(found.shape)}, its target {tuple(target.shape)}")
    wanted = patchify(target, cell)
    wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6).sqrt()
    return (patchify(found, cell) - wanted).square().mean(-1)


def reconstruction_loss(found: Tensor, target: Tensor, visible: Tensor, cell: int) -> Tensor:
    """Mean of `cell_errors` over the hidden cells of all images; 0 where none is hidden.

    Args:
        found: Reconstruction (b, c, *size).
        target: Images or volumes of that shape.
        visible: Which cells were shown (b, cells), bool.
        cell: Side of a cell.

    Raises:
        ValueError: shapes do not agree.
    """
    errors = cell_errors(found, target, cell)
    if visible.shape != errors.shape:
        raise ValueError(f"there are {tuple(errors.shape)} cells, but a mask of {tuple(visible.shape)}")
    hidden = (~visible.bool()).to(errors.dtype)
    return (errors * hidden).sum() / (hidden.sum() + 1e-8)
