"""The scan orders: each function returns, for a map of height x width, the token that every route reads at every step.

A token is the row-major index `row * width + column`; -1 reads a zero token. Tables are int64 (routes, steps).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import register_scan


def _grid(height: int, width: int) -> Tensor:
    """Tokens as a map (height, width)."""
    return torch.arange(height * width).view(height, width)


@register_scan("raster", routes=1)
def raster(height: int, width: int) -> Tensor:
    """Row by row, left to right."""
    return _grid(height, width).reshape(1, -1)


@register_scan("vertical", routes=1)
def vertical(height: int, width: int) -> Tensor:
    """Column by column, downwards."""
    return _grid(height, width).T.reshape(1, -1)


@register_scan("bidirectional", routes=2)
def bidirectional(height: int, width: int) -> Tensor:
    """Raster and its reverse (Vision Mamba, arXiv:2401.09417, section 3.3)."""
    rows = raster(height, width)
    return torch.cat([rows, rows.flip(1)])


@register_scan("shuffle<k>", routes=1)
def shuffle(height: int, width: int, k: int) -> Tensor:
    """A random permutation that depends on the seed k and the number of tokens (RSMamba, arXiv:2403.19654)."""
    return torch.from_numpy(np.random.RandomState(k).permutation(height * width))[None]


@register_scan("cross", routes=4)
def cross(height: int, width: int) -> Tensor:
    """Rows, columns, rows reversed, columns reversed (VMamba, arXiv:2401.10166, section 4.2)."""
    forward = torch.cat([raster(height, width), vertical(height, width)])
    return torch.cat([forward, forward.flip(1)])


@register_scan("local<k>", routes=1)
@register_scan("window<k>", routes=1)
def window(height: int, width: int, k: int) -> Tensor:
    """Windows of k x k row by row, raster inside each; the map is padded right and bottom with zero tokens.

    LocalMamba, arXiv:2403.09338, section 4.1.
    """
    padded = F.pad(_grid(height, width), (0, -width % k, 0, -height % k), value=-1)
    rows, columns = padded.shape[0] // k, padded.shape[1] // k
    return padded.view(rows, k, columns, k).transpose(1, 2).reshape(1, -1)


@register_scan("continuous", routes=4)
@register_scan("snake", routes=4)
def snake(height: int, width: int) -> Tensor:
    """Rows that turn round at each end, the reverse, columns likewise, the reverse; each step is to a neighbour.

    PlainMamba, arXiv:2403.17695, section 3.2.
    """
    grid = _grid(height, width)
    rows, columns = _turning(grid), _turning(grid.T)
    return torch.stack([rows, rows.flip(0), columns, columns.flip(0)])


def _turning(grid: Tensor) -> Tensor:
    grid = grid.clone()
    grid[1::2] = grid[1::2].flip(1)
    return grid.flatten()


@register_scan("skip<k>", routes=lambda k: k * k)
@register_scan("atrous<k>", routes=lambda k: k * k)
def atrous(height: int, width: int, k: int) -> Tensor:
    """One route for each of the k x k sub-lattices of stride k; together they visit every token once.

    Sub-lattices that start in an even row are read by rows, the others by columns; all are padded at the right and the
    bottom to ceil(height / k) x ceil(width / k) tokens. k = 2: EfficientVMamba, arXiv:2403.09977, section 3.2.
    """
    padded = F.pad(_grid(height, width), (0, -width % k, 0, -height % k), value=-1)
    lattices = [(padded[i::k, j::k], i) for j in range(k) for i in range(k)]
    return torch.stack([(lattice if i % 2 == 0 else lattice.T).flatten() for lattice, i in lattices])


@register_scan("zigzag", routes=8)
def zigzag(height: int, width: int) -> Tensor:
    """Diagonals that turn round at each border, in eight forms.

    From the corners top left, top right, bottom left, bottom right; from each, first along the row, then along the
    column. The first form is the zigzag of JPEG (ITU-T T.81, figure 5).
    """
    grid = _grid(height, width)
    corners = [grid, grid.flip(1), grid.flip(0), grid.flip(0, 1)]
    return torch.stack([_diagonals(form) for corner in corners for form in (corner, corner.T)])


def _diagonals(grid: Tensor) -> Tensor:
    row = torch.arange(grid.shape[0])[:, None]
    column = torch.arange(grid.shape[1])[None, :]
    diagonal = row + column
    along = torch.where(diagonal % 2 == 0, column, row)  # even diagonals go up and right, odd ones down and left
    return grid.flatten()[torch.argsort((diagonal * max(grid.shape) + along).flatten())]


@register_scan("diagonal", routes=1)
def diagonal(height: int, width: int) -> Tensor:
    """Diagonals from the top left, each read from its upper right end down to the left (EAMamba, arXiv:2506.22246)."""
    row, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
    return torch.argsort(((row + column) * height + row).flatten())[None]


@register_scan("hilbert", routes=1)
def hilbert(height: int, width: int) -> Tensor:
    """Hilbert's curve (Math. Ann. 38, 1891), continued to every rectangle; each step is to a neighbour.

    It starts at the top left and ends at another corner: the top right, or the bottom left where the map is taller than
    wide or where the number of rows and columns allows no such path to the top right.
    """
    across_is_possible = width > 1 and (width % 2 == 0 or height % 2 == 1) or height == 1
    down_is_possible = height > 1 and (height % 2 == 0 or width % 2 == 1) or width == 1
    if across_is_possible and (width >= height or not down_is_possible):
        column, row = _hilbert_path(width, height, {})
    else:
        row, column = _hilbert_path(height, width, {})
    return (row * width + column)[None]


def _hilbert_path(width: int, height: int, known: dict[tuple[int, int], Tensor]) -> Tensor:
    """Coordinates (2, width * height) of a path of neighbours from (0, 0) to (width - 1, 0), each pair (x, y).

    By the colours of a chess board such a path needs an even width, or an odd height; every rectangle below is cut so
    that its parts meet that condition again: a cut is always at an even distance.
    """
    if (width, height) in known:
        return known[width, height]
    if height == 1:
        path = torch.stack([torch.arange(width), torch.zeros(width, dtype=torch.int64)])
    elif width == 2 and height == 2:
        path = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]])
    elif 2 * width > 3 * height:  # long: one half after the other
        cut = 2 * round(width / 4)
        first, second = _hilbert_path(cut, height, known), _hilbert_path(width - cut, height, known)
        path = torch.cat([first, second + torch.tensor([[cut], [0]])], dim=1)
    else:  # up the left half, across above both, down the right half
        cut = (height - min(width, height) // 2) // 2 * 2
        left = width // 2
        up = _hilbert_path(cut, left, known).flip(0)
        across = _hilbert_path(width, height - cut, known) + torch.tensor([[0], [cut]])
        x, y = _hilbert_path(cut, width - left, known).flip(0, 1)
        down = torch.stack([width - 1 - x, y])
        path = torch.cat([up, across, down], dim=1)
    known[width, height] = path
    return path


@register_scan("zorder", routes=1)
def zorder(height: int, width: int) -> Tensor:
    """Quadrant by quadrant, each in the shape of a Z (Morton, 1966): by the interleaved bits of row and column."""
    code = 2 * _spread_bits(torch.arange(height))[:, None] + _spread_bits(torch.arange(width))[None, :]
    return torch.argsort(code.flatten())[None]


@register_scan("gray", routes=1)
def gray(height: int, width: int) -> Tensor:
    """Quadrant by quadrant, each right, down, left: a U that is never turned, so it jumps between quadrants.

    A Gray code of row and column; the curve that OccMamba, arXiv:2408.09859, calls Hilbert's.
    """
    row, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
    code = 2 * _spread_bits(row) + _spread_bits(row ^ column)
    return torch.argsort(code.flatten())[None]


def _spread_bits(value: Tensor) -> Tensor:
    """Bit i of each value moved to bit 2 i."""
    spread = torch.zeros_like(value)
    for bit in range(int(value.max()).bit_length()):
        spread |= (value >> bit & 1) << 2 * bit
    return spread


@register_scan("spiral", routes=1)
def spiral(height: int, width: int) -> Tensor:
    """Clockwise from the top left along the border, then inwards."""
    grid = _grid(height, width)
    sides = []
    while grid.numel():
        sides.append(grid[0])
        grid = grid[1:].rot90()
    return torch.cat(sides)[None]


@register_scan("ms2d_low", routes=1)
def ms2d_low(height: int, width: int) -> Tensor:
    """Rows reversed, then columns, then columns reversed, as one route that visits every token three times.

    The route of the down-sampled map in MSVMamba's multi-scale scan, arXiv:2405.14174.
    """
    rows, columns = raster(height, width), vertical(height, width)
    return torch.cat([rows.flip(1), columns, columns.flip(1)], dim=1)
