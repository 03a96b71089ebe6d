"""Rotary embedding of positions on a map (RoFormer, arXiv:2104.09864; in two dimensions EVA-02, arXiv:2303.11331)."""

import torch
from timm.layers import build_rotary_pos_embed
from torch import Tensor, nn

from .tokens import resample_pos_embed

_REFERENCE_SIDE = 14  # positions run from 0 to 14 along each side, whatever its number of patches


class RotaryTables(nn.Module):
    """Sines and cosines to rotate tokens by: first half of the channels by row, second half by column.

    They are computed for one grid. As in the published models, the tables of another grid are those resampled
    bicubically.

    Args:
        dim: Channels of the tokens, a multiple of 4.
        grid_size: Rows and columns of the map that the tables are computed for.
    """

    def __init__(self, dim: int, grid_size: tuple[int, int], device=None):
        super().__init__()
        if dim % 4:
            raise ValueError(f"a rotary embedding in two dimensions needs a multiple of 4 channels, got {dim}")
        self.dim = dim
        self.grid_size = tuple(grid_size)
        # float32 whatever the model's dtype, like the stream that they rotate
        shape = 1, grid_size[0] * grid_size[1], dim
        self.register_buffer("sin", torch.empty(shape, device=device), persistent=False)
        self.register_buffer("cos", torch.empty(shape, device=device), persistent=False)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the tables where they are."""
        sin, cos = build_rotary_pos_embed(
            list(self.grid_size),
            dim=self.dim,
            in_pixels=False,
            ref_feat_shape=[_REFERENCE_SIDE] * 2,
            device=self.sin.device,
        )
        self.sin.copy_(sin)
        self.cos.copy_(cos)

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Sines and cosines (1, height * width, dim) for a map of height x width."""
        grid = (height, width)
        return tuple(resample_pos_embed(t, self.grid_size, grid, with_middle_token=False) for t in (self.sin, self.cos))
