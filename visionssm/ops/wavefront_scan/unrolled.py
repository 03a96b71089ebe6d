"""The wavefront scan as a program without in-place operations, for exporters that know no custom operator."""

import torch
from torch import Tensor

from .contract import Wavefront
from .portable import diagonals, read


def wavefront_scan_unrolled(scan: Wavefront) -> Tensor:
    """Every anti-diagonal written out; forward only, returns x's shape and dtype."""
    b, height, width, d = scan.x.shape
    inputs = read(scan)
    states = inputs.x.new_zeros(b, height + 1, scan.states, d)
    outputs = []
    for diagonal in diagonals(height, width):
        at = inputs.of(diagonal)
        decay = torch.exp(at.log_shares + at.delta.unsqueeze(-2) * at.A)
        h = decay[:, :, 0] * states[:, diagonal.rows_above] + decay[:, :, 1] * states[:, diagonal.rows]
        h = h + (at.B.unsqueeze(-1) * at.input.unsqueeze(-2)).sum(2)
        outputs.append((at.C.unsqueeze(-1) * h).sum(-2))
        zeros = states.new_zeros(b, 1, scan.states, d)
        above, below = zeros.expand(-1, diagonal.first + 1, -1, -1), zeros.expand(-1, height - diagonal.last, -1, -1)
        states = torch.cat([above, h, below], 1)
    i, j = (torch.arange(size, device=states.device) for size in (height, width))
    cells = ((i[:, None] + j) * height + i[:, None]).flatten().argsort()  # by anti-diagonal, then by row
    y = torch.cat(outputs, 1).index_select(1, cells.argsort())
    if scan.D is not None:
        y = y + scan.D * inputs.x
    return y.unflatten(1, (height, width)).to(scan.x.dtype)
