"""Halving a map (b, h, w, c): by convolutions, or by merging 2 x 2 patches."""

import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import Tensor, nn

from .conv_norm_act import ConvNormAct
from .map_conv import MapConv2d


class ConvDownsample(nn.Module):
    """3 x 3 convolution of stride 2, then a norm; odd sizes round up.

    Args:
        dim: Channels in.
        dim_out: Channels out.
        norm_layer: Norm after the convolution.
        bias: Bias of the convolution.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        norm_layer: type[nn.Module] = LayerNorm,
        bias: bool = True,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = MapConv2d(dim, dim_out, 3, stride=2, padding=1, bias=bias, **dd)
        self.norm = norm_layer(dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to (b, ceil(h / 2), ceil(w / 2), dim_out)."""
        return self.norm(self.conv(x))


class PatchMerging(nn.Module):
    """Concatenate 2 x 2 pixels, norm, project (Swin, arXiv:2103.14030); odd sizes are padded with zeros first.

    The pixels of a patch follow each other column by column: (0, 0), (1, 0), (0, 1), (1, 1).

    Args:
        dim: Channels in.
        dim_out: Channels out.
        norm_layer: Norm before the projection; it sees the padded zeros too.
    """

    def __init__(self, dim: int, dim_out: int, norm_layer: type[nn.Module] = LayerNorm, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = norm_layer(4 * dim, **dd)
        self.reduction = nn.Linear(4 * dim, dim_out, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to (b, ceil(h / 2), ceil(w / 2), dim_out)."""
        height, width = x.shape[1], x.shape[2]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))


class BottleneckDownsample(nn.Module):
    """Expand, halve the map by a depthwise convolution, project; a batch norm at the end only.

    Args:
        dim: Channels in.
        dim_out: Channels out; four times as many between.
    """

    def __init__(self, dim: int, dim_out: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        wide = 4 * dim_out
        self.expand = nn.Conv2d(dim, wide, 1, **dd)
        self.conv = nn.Conv2d(wide, wide, 3, stride=2, padding=1, groups=wide, **dd)
        self.act = nn.ReLU()
        self.project = ConvNormAct(wide, dim_out, 1, bias=True, apply_act=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to (b, ceil(h / 2), ceil(w / 2), dim_out)."""
        x = self.act(self.expand(x.permute(0, 3, 1, 2)))
        return self.project(self.act(self.conv(x))).permute(0, 2, 3, 1)
