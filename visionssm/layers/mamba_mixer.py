"""Mamba's mixer with a causal convolution and a scan of its own for every route (Vision Mamba, arXiv:2401.09417)."""

import math

import torch
from torch import Tensor, nn

from ..ops import causal_conv1d
from ..scans import num_routes, scan_table
from .ssm import SelectiveSSM
from .token_pruning import kept_along


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
        self.gate_act: nn.Module = nn.SiLU()
        self.conv_quantizer: nn.Module | None = None  # of the convolution's input, in a quantised model
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

    def forward(self, x: Tensor, height: int, width: int, kept: Tensor | None = None, align: bool = True) -> Tensor:
        """Mix the tokens (b, L, d) of a map of height x width; with `kept`, as `merge`, only those that are left."""
        return self.project(self.merge(x, height, width, kept, align))

    def project(self, y: Tensor) -> Tensor:
        """The last projection (b, L, d) of what `merge` gives."""
        return self.proj_drop(self.out_proj(y))

    def merge(self, x: Tensor, height: int, width: int, kept: Tensor | None = None, align: bool = True) -> Tensor:
        """The scan, merged and gated, before the last projection.

        Args:
            x: Tokens (b, L, d) of a map.
            height: Rows of the map.
            width: Columns of the map.
            kept: Where x are the tokens that are left of a map: their places in the whole sequence (b, L), ascending.
                The convolution joins neighbours among those that are left.
            align: The state decays over what was left out (ToP-ViM, arXiv:2409.18962); else nothing was there.

        Returns:
            (b, L, channels of the scan).
        """
        u, z = self.in_proj(x).chunk(2, dim=-1)
        if self.conv_quantizer is not None:
            u = self.conv_quantizer(u)
        order = self.order(height, width, x.device)
        if kept is not None:
            return self._merge_kept(u, self.gate_act(z), self.ssm.rows(order), kept, align)
        u = causal_conv1d(u, self.conv_weight, self.conv_bias, self.ssm.rows(order), activation="silu")
        gate = self.gate_act(z)
        if self.route_gate is None:
            # every route has the same gate, so the merged routes are gated once
            y = self.ssm(u, order, num_tokens=x.shape[1], by_step=True) * gate
            y = y / self.ssm.table_rows if self.average else y
        else:
            y = self.ssm(u, order, num_tokens=x.shape[1], by_step=True, out="route")
            y = self.route_gate(y * gate.unsqueeze(2))
        return y

    def _merge_kept(self, u: Tensor, gate: Tensor, order: Tensor, kept: Tensor, align: bool) -> Tensor:
        tokens, skipped = kept_along(order, kept)
        index = tokens.transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, u.shape[-1])  # (b, T, k, d)
        u = u.unsqueeze(2).expand(-1, -1, len(order), -1).gather(1, index)
        u = causal_conv1d(u, self.conv_weight, self.conv_bias, activation="silu")
        y = self.ssm.scan_kept(u, skipped.transpose(1, 2) if align else torch.zeros_like(skipped.transpose(1, 2)))
        y = torch.zeros_like(y).scatter(1, index, y)
        if self.route_gate is not None:
            return self.route_gate(y * gate.unsqueeze(2))
        y = y.sum(2) * gate
        return y / self.ssm.table_rows if self.average else y


class BidirectionalMixer(MambaMixer):
    """`MambaMixer` whose "bidirectional" order reads the whole sequence forwards and backwards (Vim)."""

    def order(self, height: int, width: int, device: torch.device) -> Tensor:
        """Scan table (routes, steps) of a map, extra tokens included."""
        if self.scan == "bidirectional":
            # with an odd number of patches this is not the reversed map with the tokens inserted
            return scan_table("bidirectional", 1, height * width + self.extra_tokens[0], device)
        return super().order(height, width, device)
