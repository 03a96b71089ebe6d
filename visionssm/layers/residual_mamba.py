"""Mamba on the pixels of a map of two or three axes, with a scaled skip and one norm used twice."""

import math

import torch
from torch import Tensor, nn

from .mamba_mixer import MambaMixer


class ResidualMamba(nn.Module):
    """proj(norm(mamba(norm(x)) + skip_scale * skip)) over the pixels in raster order; both norms are one module.

    As in LightM-UNet (arXiv:2403.05246, "residual vision mamba layer") and UltraLight VM-UNet (arXiv:2403.20035, where
    one Mamba serves several groups of channels).

    Args:
        dim: Channels in.
        dim_out: Channels out.
        groups: Consecutive groups of channels that the mixer sees one by one, with the same weights.
        skip_norm: The skip is the normalised input, not the input.
        scan: Name of the scan order; maps of three axes are read as slices below each other.
        d_state: States per channel of the scan.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        groups: int = 1,
        skip_norm: bool = False,
        scan: str = "raster",
        d_state: int = 16,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if dim % groups:
            raise ValueError(f"channels must be a multiple of {groups} groups, got {dim}")
        self.groups = groups
        self.skip_norm = skip_norm
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.mamba = MambaMixer(dim // groups, scan, d_state, **dd)
        self.skip_scale = nn.Parameter(torch.ones(1, **dd))
        self.proj = nn.Linear(dim, dim_out, **dd)

    def reset_parameters(self) -> None:
        """Begin with a plain skip."""
        nn.init.ones_(self.skip_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) or (b, dim, d, h, w) to the same with dim_out channels."""
        size = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        parts = normed.unflatten(2, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        y = self.mamba(parts, math.prod(size[:-1]), size[-1])
        y = y.unflatten(0, (-1, self.groups)).transpose(1, 2).flatten(2)
        y = y + self.skip_scale * (normed if self.skip_norm else tokens)
        return self.proj(self.norm(y)).transpose(1, 2).unflatten(2, size)
