"""LightM-UNet: a small U-Net of residual Mamba layers at all resolutions, for images and volumes.

Paper: LightM-UNet: Mamba Assists in Lightweight UNet for Medical Image Segmentation, https://arxiv.org/abs/2403.05246
Original code: https://github.com/MrBlankness/LightM-UNet (Apache-2.0)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import ResidualMamba
from ..scans import check_scan
from ._base import MAMBA_NAMES, SegmentationModel
from ._registry import register

__all__ = ["LightMUNet"]

_GROUPS = 8


def _conv(spatial_dims: int):
    return nn.Conv2d if spatial_dims == 2 else nn.Conv3d


def _separable(dim: int, dim_out: int, kernel: int, bias: bool, spatial_dims: int) -> nn.Sequential:
    """A depthwise convolution, then a pointwise one."""
    conv = _conv(spatial_dims)
    return nn.Sequential(
        conv(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=bias),
        conv(dim, dim_out, 1, bias=bias),
    )


class MambaBlock(nn.Module):
    """x + two Mamba layers, each after a norm and an activation."""

    def __init__(self, dim: int, scan: str):
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, dim)
        self.mamba1 = ResidualMamba(dim, dim, scan=scan)
        self.norm2 = nn.GroupNorm(_GROUPS, dim)
        self.mamba2 = ResidualMamba(dim, dim, scan=scan)

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same shape."""
        y = self.mamba1(F.relu(self.norm1(x)))
        return x + self.mamba2(F.relu(self.norm2(y)))


class ConvBlock(nn.Module):
    """A separable convolution between norms and activations, with a scaled skip."""

    def __init__(self, dim: int, spatial_dims: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, dim)
        self.conv = _separable(dim, dim, 3, False, spatial_dims)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm2 = nn.GroupNorm(_GROUPS, dim)

    def reset_parameters(self) -> None:
        """Begin with a plain skip."""
        nn.init.ones_(self.skip_scale)

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same shape."""
        y = self.conv(F.relu(self.norm1(x))) + self.skip_scale * x
        return F.relu(self.norm2(y))


class DownStage(nn.Module):
    """Widen and halve (not in the first stage), then blocks."""

    def __init__(self, widen: nn.Module | None, blocks: Sequence[nn.Module], spatial_dims: int):
        super().__init__()
        self.widen = widen
        self.pool = nn.MaxPool2d(2) if spatial_dims == 2 else nn.MaxPool3d(2)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """A map to one of half the size and twice the channels."""
        return self.blocks(x if self.widen is None else self.pool(self.widen(x)))


class UpStage(nn.Module):
    """Narrow, double the size, add a skip, then blocks."""

    def __init__(self, dim: int, dim_out: int, depth: int, spatial_dims: int):
        super().__init__()
        self.narrow = _conv(spatial_dims)(dim, dim_out, 1, bias=False)
        self.blocks = nn.Sequential(*(ConvBlock(dim_out, spatial_dims) for _ in range(depth)))
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """A map, and a skip of twice its size and half its channels, to a map of the skip's shape."""
        x = F.interpolate(self.narrow(x), scale_factor=2, mode=self.mode, align_corners=False)
        return self.blocks(x + skip)


@register("lightm_unet")
@register("test_lightm_unet", dim=8, blocks_down=(1, 1, 1), blocks_up=(1, 1))
@register("test_lightm_unet_3d", dim=8, blocks_down=(1, 1), blocks_up=(1,), spatial_dims=3)
class LightMUNet(SegmentationModel):
    """LightM-UNet (arXiv:2403.05246).

    The scans of the first stage read every pixel of the image.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images.
        dim: Channels at full size, a multiple of 8; they double from stage to stage.
        blocks_down: Blocks of each stage of the encoder, finest first.
        blocks_up: Blocks of each stage of the decoder, coarsest first; one less.
        spatial_dims: 2, or 3 for volumes.
        scan: Name of the scan order; of the slices below each other for volumes.
        pad: Take any size, see `SegmentationModel`.

    Raises:
        ValueError: an argument is out of its range.
    """

    classifier = "head.1"
    linear_std = None
    undecayed = (".ssm.D", ".ssm.dt_bias", ".conv_bias")
    layout = Layout(
        own=r"^stem\.0\.weight$",
        tell_tale=(r"^convInit\.0\.conv\.", r"^down_layers\.0\.1\.conv1\.mamba\."),
        names=(
            *MAMBA_NAMES,
            (r"\.conv\.(weight|bias)$", r".\1"),
            (r"^convInit\.", "stem."),
            (r"^down_layers\.(\d+)\.0\.0\.", r"encoder.\1.widen."),
            (r"^down_layers\.(\d+)\.(\d+)\.", lambda match: f"encoder.{match[1]}.blocks.{int(match[2]) - 1}."),
            (r"^(encoder\.\d+\.blocks\.\d+)\.conv([12])\.", r"\1.mamba\2."),
            (r"^up_samples\.(\d+)\.0\.", r"decoder.\1.narrow."),
            (r"^up_layers\.(\d+)\.", r"decoder.\1.blocks."),
            (r"^conv_final\.0\.", "head_norm."),
            (r"^conv_final\.2\.", "head."),
        ),
    )

    def __init__(
        self,
        num_classes: int = 2,
        in_chans: int = 1,
        dim: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        spatial_dims: int = 2,
        scan: str = "raster",
        pad: bool = True,
    ):
        super().__init__(in_chans, num_classes, 2 ** (len(blocks_down) - 1), pad, spatial_dims)
        check_scan(scan)
        if dim < 1 or dim % _GROUPS:
            raise ValueError(f"dim must be a multiple of {_GROUPS}, the groups of the norms; got {dim}")
        if len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(
                f"blocks_up must be one shorter than blocks_down, got {len(blocks_up)} and {len(blocks_down)}"
            )
        dims = [dim * 2**i for i in range(len(blocks_down))]
        self.stem = _separable(in_chans, dim, 3, False, spatial_dims)
        self.encoder = nn.ModuleList(
            DownStage(
                ResidualMamba(dims[i - 1], width, scan=scan) if i else None,
                [MambaBlock(width, scan) for _ in range(blocks_down[i])],
                spatial_dims,
            )
            for i, width in enumerate(dims)
        )
        back = dims[::-1]
        self.decoder = nn.ModuleList(
            UpStage(width, narrow, depth, spatial_dims)
            for width, narrow, depth in zip(back, back[1:], blocks_up, strict=False)
        )
        self.head_norm = nn.GroupNorm(_GROUPS, dim)
        self.head = _separable(dim, num_classes, 1, True, spatial_dims)

    def forward_logits(self, x: Tensor) -> Tensor:
        """The model itself, for sides that are multiples of `size_multiple`."""
        x = self.stem(x)
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        for up, skip in zip(self.decoder, maps[-2::-1], strict=True):
            x = up(x, skip)
        return self.head(F.relu(self.head_norm(x)))
