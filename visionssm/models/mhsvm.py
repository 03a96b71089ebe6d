"""MHS-VM: a mixer whose heads scan channels of their own along patterns of their own, and weigh how routes differ.

Paper: MHS-VM: Multi-Head Scanning in Parallel Subspaces for Vision Mamba, https://arxiv.org/abs/2406.05992
Original code: https://github.com/PixDeep/MHS-VM (Apache-2.0); a U-Net for medical images, no image classifier.

There is no model to register here: these are the parts that such a U-Net, or a mixer of your own, is made of. Maps are
(batch, height, width, channels).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..layers import SelectiveSSM, split_linear, state_dtype
from ..scans import num_routes, scan_table

__all__ = ["HEAD_SCANS", "GatedMultiHeadScan", "MultiHeadScan", "ScanRouteAttention"]

# each pattern, its reverse, and the same of its image from another corner or side (section 3.2 of the paper)
HEAD_SCANS = {
    "continuous": "snake",
    "diagonal": "zigzag[0]+zigzag[0]_flip+zigzag[0]_mirror+zigzag[0]_mirror_flip",
    "spiral": "spiral+spiral_flip+spiral_updown+spiral_updown_flip",
    "raster": "raster+raster_flip+vertical+vertical_flip",
}


class ScanRouteAttention(nn.Module):
    """Merge routes: their sum, times by how much they vary against their mean above the smallest, less a threshold.

    For every token and channel, over the routes r: sum_r y_r * relu(std / (mean_r (y_r - min y) + 1e-5) - threshold).
    Where all routes agree the result is 0.

    Args:
        threshold: Variation below which a token and channel is dropped.
    """

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.threshold = threshold

    def forward(self, y: Tensor) -> Tensor:
        """Routes (b, L, k, c), k at least 2, to (b, L, c); float32 (float64 for float64)."""
        y = state_dtype(y)
        # routes that nearly agree are subtracted exactly, so the quotient of two small numbers loses the least this way
        above = y - y.amin(2, keepdim=True)
        mean = above.mean(2, keepdim=True)
        deviation = torch.linalg.vector_norm(above - mean, dim=2) / math.sqrt(y.shape[2] - 1)
        variation = deviation / (mean.squeeze(2) + 1e-5)
        return y.sum(2) * torch.relu(variation - self.threshold)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"


class ScanHead(nn.Module):
    """A selective scan along every route of one pattern, each with its own parameters, and the merge of the routes."""

    def __init__(self, dim: int, scan: str, d_state: int, threshold: float, device=None, dtype=None):
        super().__init__()
        self.scan = scan
        self.ssm = SelectiveSSM(dim, num_routes(scan), d_state, math.ceil(dim / 16), device=device, dtype=dtype)
        self.merge = ScanRouteAttention(threshold)

    def forward(self, u: Tensor, height: int, width: int) -> Tensor:
        """Tokens (b, L, dim) of a map to (b, L, dim), float32."""
        order = scan_table(self.scan, height, width, u.device)
        return self.merge(self.ssm(u, order, out="route"))


class MultiHeadScan(nn.Module):
    """Project the channels to heads, scan each along its pattern, normalise and project back (section 3.1).

    Args:
        dim: Channels of the map.
        scans: Name of a scan order for each head, of at least two routes; the published models have the first three or
            all four of `HEAD_SCANS`.
        d_state: States per channel of the scans.
        threshold: See `ScanRouteAttention`; the published models were trained with 0.5 or 0, and tested with 0.4.

    Raises:
        ValueError: there are no heads or more than channels, or a scan order is unknown or has one route.
    """

    def __init__(
        self,
        dim: int,
        scans: Sequence[str] = tuple(HEAD_SCANS.values()),
        d_state: int = 16,
        threshold: float = 0.5,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        scans = (scans,) if isinstance(scans, str) else tuple(scans)
        if not 1 <= len(scans) <= dim:
            raise ValueError(f"expected from 1 to {dim} heads for {dim} channels, got {len(scans)} scan orders")
        for scan in scans:
            if num_routes(scan) < 2:
                raise ValueError(
                    f"a head compares its routes, so it needs at least 2; {scan!r} has 1, take for example "
                    f"'{scan}+{scan}_flip'"
                )
        head_dim = dim // len(scans)
        dim_inner = head_dim * len(scans)
        self.head_proj = nn.Linear(dim, dim_inner, bias=False, **dd)
        self.heads = nn.ModuleList(ScanHead(head_dim, scan, d_state, threshold, **dd) for scan in scans)
        self.norm = nn.LayerNorm(dim_inner, eps=1e-5, **dd)
        self.out_proj = nn.Linear(dim_inner, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to a map of the same shape."""
        height, width = x.shape[1], x.shape[2]
        parts = self.head_proj(x).flatten(1, 2).chunk(len(self.heads), dim=-1)
        y = torch.cat([head(parts[i], height, width) for i, head in enumerate(self.heads)], dim=-1)
        return self.out_proj(self.norm(y.to(self.norm.weight.dtype))).unflatten(1, (height, width))


class GatedMultiHeadScan(nn.Module):
    """Projection, depthwise convolution, `MultiHeadScan`, norm, gate: the mixer of MHS-VM's blocks.

    Args:
        dim: Channels of the map.
        scans: Name of a scan order for each head.
        d_state: States per channel of the scans.
        threshold: See `ScanRouteAttention`.
    """

    def __init__(
        self,
        dim: int,
        scans: Sequence[str] = tuple(HEAD_SCANS.values()),
        d_state: int = 16,
        threshold: float = 0.5,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * dim, bias=False, **dd)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.act = nn.SiLU()
        self.scan = MultiHeadScan(dim, scans, d_state, threshold, **dd)
        self.norm = nn.LayerNorm(dim, eps=1e-5, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to a map of the same shape."""
        x, z = split_linear(self.in_proj, x)
        x = self.act(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.norm(self.scan(x)) * self.act(z)
