"""Merging routes by a gate over channels (LocalMamba, arXiv:2403.09338, "spatial and channel attention")."""

import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import Tensor, nn


class RouteGate(nn.Module):
    """Gate the channels of each route by the mean of its tokens, then sum the routes.

    All routes share the parameters, but each is gated by its own mean. As in the published models there is no gate
    over positions.

    Args:
        dim: Channels.
        reduction: Channels over hidden channels of the gate.
        norm_layer: Norm over channels before the mean.
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 8,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = norm_layer(dim, **dd)
        self.reduce = nn.Linear(dim, dim // reduction, **dd)
        self.expand = nn.Linear(dim // reduction, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Routes by token (b, L, k, dim) to merged tokens (b, L, dim)."""
        gate = self.expand(F.gelu(self.reduce(self.norm(x).mean(1)))).sigmoid()
        return (x * gate.unsqueeze(1)).sum(2)
