"""The wavefront scan in plain PyTorch: all cells of one anti-diagonal in one step.

A state (i, j) needs those above and on the left, which lie on the anti-diagonal before: so the H + W - 1 anti-diagonals
are walked in turn, and each is a strided view of the map stored row by row. States are kept by row: what row i needs
from the left was in row i, what it needs from above in row i - 1. A zero row stands for what lies above the map.

How much a direction counts in a cell, its share, is 1/2, and 0 or 1 at the borders; it is part of the decay and of B.
The forward keeps the states before every few anti-diagonals, and the backward recomputes those between.
"""

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor

from .backend import Backend
from .contract import Wavefront


class _Diagonal(NamedTuple):
    """The cells of rows first .. last - 1 on an anti-diagonal."""

    first: int
    last: int
    cells: slice  # of the map stored row by row

    @property
    def rows(self) -> slice:
        """Their states; also those on the left of them, one anti-diagonal before."""
        return slice(self.first + 1, self.last + 1)

    @property
    def rows_above(self) -> slice:
        return slice(self.first, self.last)


class _Inputs(NamedTuple):
    """What the steps read, in the state's dtype; the axis of size 2 is the direction, top and left."""

    x: Tensor  # (b, H * W, d)
    delta: Tensor  # (b, H * W, 2, d)
    A: Tensor  # (2, N, d)
    B: Tensor  # (b, H * W, 2, N), times the shares
    C: Tensor  # (b, H * W, N)
    input: Tensor  # (b, H * W, 2, d), delta times x
    shares: Tensor  # (H * W, 2)
    log_shares: Tensor  # (H * W, 2, 1, 1)

    def of(self, diagonal: _Diagonal) -> "_Inputs":
        by_cell = {name: getattr(self, name)[:, diagonal.cells] for name in ("x", "delta", "B", "C", "input")}
        shares = {name: getattr(self, name)[diagonal.cells] for name in ("shares", "log_shares")}
        return self._replace(**by_cell, **shares)


def forward(scan: Wavefront, save: bool) -> tuple[Tensor, Tensor | None]:
    """The output, and if `save` the states before each segment for `backward`."""
    b, height, width, d = scan.x.shape
    inputs = read(scan)
    y = torch.empty_like(inputs.x)
    before, after = inputs.x.new_zeros(2, b, height + 1, scan.states, d)
    saved = []
    for segment in _segments(height, width):
        if save:
            saved.append(before.clone())
        for diagonal in segment:
            cells = inputs.of(diagonal)
            _advance(diagonal, cells, before, after)
            y[:, diagonal.cells] = torch.matmul(cells.C.unsqueeze(-2), after[:, diagonal.rows]).squeeze(-2)
            before, after = after, before
    if scan.D is not None:
        y.addcmul_(inputs.x, scan.D)
    return y.view(scan.x.shape).to(scan.x.dtype), torch.stack(saved) if save else None


def states_shape(scan: Wavefront) -> tuple[int, ...]:
    """Shape of the states that `forward` saves: (segments, b, H + 1, N, d)."""
    b, height, width, d = scan.x.shape
    return len(_segments(height, width)), b, height + 1, scan.states, d


def backward(grad: Tensor, states: Tensor, scan: Wavefront) -> tuple[Tensor | None, ...]:
    """Gradients of all tensors of `scan`, None where absent."""
    b, height, width, d = scan.x.shape
    inputs = read(scan)
    dy = grad.to(scan.compute_dtype).reshape(inputs.x.shape)
    dx, ddelta, dA, dB, dC = (torch.zeros_like(t) for t in inputs[:5])
    segments = _segments(height, width)
    h = states.new_zeros(len(segments[0]) + 1, *states.shape[1:])
    later, dstate = states.new_zeros(2, *states.shape[1:])
    for segment, entry in zip(reversed(segments), reversed(states.unbind()), strict=True):
        h[0] = entry
        decays = [_advance(part, inputs.of(part), h[k], h[k + 1]) for k, part in enumerate(segment)]
        for k in reversed(range(len(segment))):
            part = segment[k]
            cells, dy_cells = inputs.of(part), dy[:, part.cells].unsqueeze(-2)
            dC[:, part.cells] = (h[k + 1][:, part.rows] * dy_cells).sum(-1)
            g = torch.addcmul(dstate[:, part.rows], cells.C.unsqueeze(-1), dy_cells)

            # through the states before
            passed = decays[k].mul_(g.unsqueeze(2))
            top, left = passed.unbind(2)
            later[:, part.rows] = left
            later[:, part.first] = 0
            later[:, part.rows_above] += top
            later, dstate = dstate, later
            # passed becomes the gradient of the exponent, delta A
            top.mul_(h[k][:, part.rows_above])
            left.mul_(h[k][:, part.rows])
            dA += (passed * cells.delta.unsqueeze(-2)).sum((0, 1))

            # through the inputs
            dinput = torch.matmul(cells.B, g)
            dB[:, part.cells] = torch.matmul(cells.input, g.mT) * cells.shares.unsqueeze(-1)
            dx[:, part.cells] = (dinput * cells.delta).sum(2)
            ddelta[:, part.cells] = passed.mul_(cells.A).sum(-2).addcmul_(dinput, cells.x.unsqueeze(2))
    dD = None
    if scan.D is not None:
        dx.addcmul_(dy, scan.D)
        dD = (dy * inputs.x).sum((0, 1))
    pairs = (stacked.unbind(dim) for stacked, dim in ((ddelta, 2), (dA.mT, 0), (dB, 2)))
    grads = dx, *(g.clone() for pair in pairs for g in pair), dC  # outputs of an operator must not share memory
    return *(g.to(t.dtype).view(t.shape) for g, t in zip(grads, scan[:8], strict=True)), dD


BACKEND = Backend("portable", None, lambda device, dtype: None, forward, backward, states_shape)


def diagonals(height: int, width: int) -> list[_Diagonal]:
    """The anti-diagonals of a map, from the top left."""
    step = max(1, width - 1)  # from a cell to the one below on its left
    out = []
    for t in range(height + width - 1):
        first, last = max(0, t - width + 1), min(height, t + 1)
        start = first * width + t - first
        out.append(_Diagonal(first, last, slice(start, start + (last - first - 1) * step + 1, step)))
    return out


def _segments(height: int, width: int) -> list[list[_Diagonal]]:
    parts = diagonals(height, width)
    length = isqrt(len(parts) - 1) + 1  # about as many states kept as recomputed at a time
    return [parts[k : k + length] for k in range(0, len(parts), length)]


def read(scan: Wavefront) -> _Inputs:
    """What the steps read."""
    x, delta_top, delta_left, A_top, A_left, B_top, B_left, C, _ = scan.computed()
    height, width = x.shape[1:3]
    i, j = (torch.arange(size, device=x.device) for size in (height, width))
    inner = torch.where((i[:, None] > 0) & (j > 0), 0.5, 1.0)
    # the corner too has the left direction's input
    shares = torch.stack([inner * (i[:, None] > 0), inner * ((j > 0) | (i[:, None] == 0))], -1)
    shares = shares.flatten(0, 1).to(x.dtype)
    x, C = x.flatten(1, 2), C.flatten(1, 2)
    delta = torch.stack([delta_top, delta_left], 3).flatten(1, 2)
    B = torch.stack([B_top, B_left], 3).flatten(1, 2) * shares.unsqueeze(-1)
    A = torch.stack([A_top.T, A_left.T])
    return _Inputs(x, delta, A, B, C, delta * x.unsqueeze(2), shares, shares.log()[..., None, None])


def _advance(diagonal: _Diagonal, cells: _Inputs, before: Tensor, after: Tensor) -> Tensor:
    """Write the states of an anti-diagonal into `after`; returns the decays, (b, cells, 2, N, d)."""
    decay = torch.addcmul(cells.log_shares, cells.delta.unsqueeze(-2), cells.A).exp_()
    h = after[:, diagonal.rows]
    torch.mul(decay[:, :, 0], before[:, diagonal.rows_above], out=h)
    h.addcmul_(decay[:, :, 1], before[:, diagonal.rows])
    for direction in range(2):
        h.addcmul_(cells.B[:, :, direction, :, None], cells.input[:, :, direction, None])
    return decay
