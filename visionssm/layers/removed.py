"""What stands in for a removed part of a model (Mamba-Shedder, arXiv:2501.17088): modules without weights."""

from typing import Any

import torch
from torch import Tensor, nn


class RemovedBlock(nn.Module):
    """A block that returns its input, and on request the zeros that it adds to the stream."""

    downsample = None

    def forward(self, x: Tensor, *grid: Any, with_hidden: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """A map, or tokens with height, width and perhaps `with_hidden` of their grid, unchanged."""
        with_hidden = bool(grid[2]) if len(grid) > 2 else with_hidden
        return (x, torch.zeros_like(x)) if with_hidden else x


class RemovedBranch(nn.Module):
    """A residual branch that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros like x."""
        return torch.zeros_like(x)


class RemovedScan(nn.Module):
    """A scan that returns what it would read: each route's input at the tokens of its steps, without D.

    Args:
        routes: Number of routes k.
        shared_input: All routes read the same tokens; else the input has a route axis.
    """

    def __init__(self, routes: int, shared_input: bool):
        super().__init__()
        self.routes = self.table_rows = routes
        self.shared_input = shared_input

    def rows(self, order: Tensor | None) -> Tensor | None:
        """The rows of a scan table that are read: all."""
        return order

    def scan_kept(self, u: Tensor, skipped: Tensor) -> Tensor:
        """As `SelectiveSSM.scan_kept`: the tokens by step (b, T, k, d), whatever was left out."""
        return u

    def forward(
        self,
        u: Tensor,
        order: Tensor | None = None,
        *,
        num_tokens: int | None = None,
        by_step: bool = False,
        out: str = "sum",
    ) -> Tensor:
        """As `SelectiveSSM.forward`, shapes included; steps that read nothing (-1) give nothing.

        Raises:
            ValueError: `out` is unknown, or the number of tokens is not told.
        """
        if out not in ("sum", "route", "step"):
            raise ValueError(f"out must be 'sum', 'route' or 'step', got {out!r}")
        if by_step and num_tokens is None:
            raise ValueError("an input stored by step needs num_tokens, the number of tokens of the output")
        if u.ndim == 3:
            u = u.unsqueeze(2).expand(-1, -1, self.routes, -1)
        if order is None:
            return u.sum(2) if out == "sum" else u
        tokens = num_tokens if by_step else u.shape[1]
        steps = order.clamp(min=0).long()
        read = (order >= 0).to(u.dtype).T[None, :, :, None]  # (1, T, k, 1)
        index = steps.T[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[-1])
        u = u * read if by_step else u.gather(1, index) * read
        if out == "step":
            return u
        y = u.new_zeros(u.shape[0], tokens, self.routes, u.shape[-1]).scatter_add(1, index, u)
        return y.sum(2) if out == "sum" else y
