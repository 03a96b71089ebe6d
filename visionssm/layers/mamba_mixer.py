"""Mamba's mixer with a causal convolution and a scan of its own for every route (Vision Mamba, arXiv:2401.09417)."""

import math

import torch
from torch import Tensor, nn

from ..ops import causal_conv1d
from ..scans import num_routes, scan_table
from .ssm import SelectiveSSM


class MambaMixer(nn.Module):
    """Projection; causal convolution and scan along each route; gate; merge; projection.

    Args:
        dim: Channels d of the tokens.
        scan: Name of the scan order.
        d_state: States per channel.
        d_conv: Taps of the convolution.
        expand: Channels of the scan over channels of the tokens.
        extra_tokens: Number and place of tokens beside the patches, see `visionssm.scans.token_positions`; every route
            reads each at its own step.
        average: Merge the routes by their mean, not their sum.
        proj_drop: Dropout after the output projection.
        route_gate: Merges the gated routes (b, L, k, channels) to (b, L, channels); None sums or averages them.
    """

    route_parameters = ("conv_weight", "conv_bias")

    def __init__(
        self,
        dim: int,
        scan: str,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        extra_tokens: tuple[int, str] = (0, "middle"),
        average: bool = False,
        proj_drop: float = 0.0,
        route_gate: nn.Module | None = None,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.scan = scan
        self.extra_tokens = extra_tokens
        self.average = average
        dim_inner, routes = expand * dim, num_routes(scan)
        self.in_proj = nn.Linear(dim, 2 * dim_inner, bias=False, **dd)
        self.conv_weight = nn.Parameter(torch.empty(routes, dim_inner, d_conv, **dd))
        self.conv_bias = nn.Parameter(torch.empty(routes, dim_inner, **dd))
        self.act = nn.SiLU()
        self.ssm = SelectiveSSM(dim_inner, routes, d_state, math.ceil(dim / 16), shared_input=False, **dd)
        self.out_proj = nn.Linear(dim_inner, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.route_gate = route_gate
        self.reset_parameters()

    @property
    def sums_routes(self) -> bool:
        """Whether routes are merged by addition, so that one can be left out."""
        return self.route_gate is None

    def reset_parameters(self) -> None:
        """Initialise the convolutions as PyTorch does; the other parts initialise themselves."""
        bound = self.conv_weight.shape[-1] ** -0.5
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.uniform_(self.conv_bias, -bound, bound)

    def order(self, height: int, width: int, device: torch.device) -> Tensor:
        """Scan table (routes, steps) of a map, extra tokens included."""
        return scan_table(self.scan, height, width, device, extra_tokens=self.extra_tokens)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Mix the tokens (b, L, d) of a map of height x width."""
        u, z = self.in_proj(x).chunk(2, dim=-1)
        order = self.order(height, width, x.device)
        u = causal_conv1d(u, self.conv_weight, self.conv_bias, self.ssm.rows(order), activation="silu")
        gate = self.act(z)
        if self.route_gate is None:
            # every route has the same gate, so the merged routes are gated once
            y = self.ssm(u, order, num_tokens=x.shape[1], by_step=True) * gate
            y = y / self.ssm.table_rows if self.average else y
        else:
            y = self.ssm(u, order, num_tokens=x.shape[1], by_step=True, out="route")
            y = self.route_gate(y * gate.unsqueeze(2))
        return self.proj_drop(self.out_proj(y))


class BidirectionalMixer(MambaMixer):
    """`MambaMixer` whose "bidirectional" order reads the whole sequence forwards and backwards (Vim)."""

    def order(self, height: int, width: int, device: torch.device) -> Tensor:
        """Scan table (routes, steps) of a map, extra tokens included."""
        if self.scan == "bidirectional":
            # with an odd number of patches this is not the reversed map with the tokens inserted
            return scan_table("bidirectional", 1, height * width + self.extra_tokens[0], device)
        return super().order(height, width, device)
