"""The scan mixer of GroupMamba (arXiv:2407.13772, section 3.2): channel groups, each scanned along a route of its own.

The groups are small and of one shape, so they run side by side: their weights are stacked, and projections, convolution
and scan of all groups are one call each.
"""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..scans import num_routes, scan_table
from .ssm import SelectiveSSM


class GroupedLinear(nn.Module):
    """One linear map per group of channels, without bias.

    Args:
        groups: Number of groups k.
        dim: Channels of a group.
        dim_out: Channels of a group after the map.
    """

    def __init__(self, groups: int, dim: int, dim_out: int, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, dim_out, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as GroupMamba does its linear layers."""
        trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(..., k, dim) to (..., k, dim_out)."""
        return torch.einsum("...kd,kod->...ko", x, self.weight)


class GroupedLayerNorm(nn.Module):
    """Layer norm of each group of channels, with weights of its own.

    Args:
        groups: Number of groups k.
        dim: Channels of a group.
        eps: Added to the variance.
    """

    def __init__(self, groups: int, dim: int, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(groups, dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(groups, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise to the plain norm."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., k, dim) along its last axis."""
        return torch.addcmul(self.bias, F.layer_norm(x, self.weight.shape[1:], eps=self.eps), self.weight)


class GroupSS2D(nn.Module):
    """Gated scan mixer over groups of channels; each group is scanned along one route.

    Args:
        dim: Channels of the map, a multiple of the number of routes.
        d_state: States per channel.
        scan: Name of the scan order; it has as many routes as there are groups.
    """

    def __init__(self, dim: int, d_state: int = 1, scan: str = "cross", device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        groups = num_routes(scan)
        if dim % groups:
            raise ValueError(f"{dim} channels cannot be split into {groups} groups, one for each route of {scan!r}")
        dim_group = dim // groups
        self.groups = groups
        self.scan = scan
        self.in_proj = GroupedLinear(groups, dim_group, 2 * dim_group, **dd)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.act = nn.SiLU()
        self.ssm = SelectiveSSM(dim_group, groups, d_state, dt_rank=-(-dim_group // 16), shared_input=False, **dd)
        self.out_norm = GroupedLayerNorm(groups, dim_group, **dd)
        self.out_proj = GroupedLinear(groups, dim_group, dim_group, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns (b, h, w, groups, dim / groups)."""
        height, width = x.shape[1], x.shape[2]
        x, z = self.in_proj(x.unflatten(-1, (self.groups, -1))).chunk(2, dim=-1)
        x = self.act(self.conv(x.flatten(3).permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        u = x.flatten(1, 2).unflatten(-1, (self.groups, -1))
        y = self.ssm(u, scan_table(self.scan, height, width, x.device), out="route")
        return self.out_proj(self.out_norm(y).unflatten(1, (height, width)) * self.act(z))
