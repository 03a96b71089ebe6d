"""MSVM-UNet: a decoder of VMamba's blocks with multi-scale MLPs and large-kernel expansion, over any backbone.

Paper: MSVM-UNet: Multi-Scale Vision Mamba UNet for Medical Image Segmentation, https://arxiv.org/abs/2408.13735
Original code: https://github.com/gndlwch2w/msvm-unet (no licence stated; written here from the description alone)
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, trunc_normal_
from torch import Tensor, nn

from ..checkpoints import Layout
from ..errors import CheckpointError
from ..layers import SS2D, ResidualBlock, expand_patches
from ..models.vmamba import VMamba
from ..scans import check_scan
from ._base import SegmentationModel
from ._registry import register

__all__ = ["LargeKernelPatchExpand", "MSVMDecoder", "MSVMUNet", "MultiScaleMlp"]

_norm = partial(LayerNorm, eps=1e-5)
_logger = logging.getLogger(__name__)


class MultiScaleMlp(nn.Module):
    """An MLP that adds depthwise convolutions of several sizes to its hidden map (section 3.3 of the paper).

    Args:
        dim: Channels.
        ratio: Hidden channels over channels.
        kernels: Sides of the convolutions, odd.
    """

    def __init__(self, dim: int, ratio: int = 4, kernels: Sequence[int] = (1, 3, 5)):
        super().__init__()
        hidden = ratio * dim
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.convs = nn.ModuleList(
            nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden, bias=False) for kernel in kernels
        )
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to a map of the same shape."""
        y = self.act(self.fc1(x)).permute(0, 3, 1, 2)
        y = y + sum(conv(y) for conv in self.convs)
        return self.fc2(y.permute(0, 2, 3, 1))


class LargeKernelPatchExpand(nn.Module):
    """Enlarge a map: widen, convolve depthwise, lay every pixel out as a patch, norm (section 3.4).

    Args:
        dim: Channels in.
        dim_out: Channels out.
        scale: Side of a patch.
    """

    def __init__(self, dim: int, dim_out: int, scale: int = 2):
        super().__init__()
        self.scale = scale
        wide = scale**2 * dim_out
        self.widen = nn.Conv2d(dim, wide, 1)
        self.bn = nn.BatchNorm2d(wide)
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.norm = _norm(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to a map (b, scale h, scale w, dim_out), channels last."""
        x = self.conv(self.act(self.bn(self.widen(x))))
        return self.norm(expand_patches(x.permute(0, 2, 3, 1), self.scale))


class MSVMStage(nn.Module):
    """Enlarge, join with a skip, then blocks."""

    def __init__(self, dim: int, dim_out: int, rates: Sequence[float], scan: str):
        super().__init__()
        self.up = LargeKernelPatchExpand(dim, dim // 2)
        self.join = nn.Linear(dim // 2 + dim_out, dim_out)
        rank = math.ceil(dim_out / 16)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    _norm(dim_out),
                    SS2D(dim_out, dim_out, 1, rank, scan, norm_layer=_norm),
                    _norm(dim_out),
                    MultiScaleMlp(dim_out),
                    drop_path,
                )
                for drop_path in rates
            )
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(b, dim, h, w), and a skip (b, dim_out, about 2 h, about 2 w), to the shape of the skip."""
        x = self.up(x)
        if x.shape[1:3] != skip.shape[2:]:  # maps of odd sides, rounded by the backbone
            x = F.interpolate(x.permute(0, 3, 1, 2), skip.shape[2:], mode="bilinear").permute(0, 2, 3, 1)
        return self.blocks(self.join(torch.cat([x, skip.permute(0, 2, 3, 1)], dim=-1))).permute(0, 3, 1, 2)


class MSVMDecoder(nn.Module):
    """The decoder of MSVM-UNet.

    Args:
        channels: Channels of the maps, finest first; all but the first even. In the original they double.
        num_classes: Channels of the logits; 0 for features of as many channels as the finest map, without a classifier.
        depths: Blocks of each stage, coarsest first; one stage less than there are maps.
        drop_path_rate: Stochastic depth of the first block; falls linearly to 0.
        scale: Pixels of the image along a side of the finest map's pixels.
        scan: Name of the scan order.

    Raises:
        ValueError: an argument is out of its range, or two do not fit each other.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_classes: int,
        depths: Sequence[int] = (2, 2, 2),
        drop_path_rate: float = 0.2,
        scale: int = 4,
        scan: str = "cross",
    ):
        super().__init__()
        check_scan(scan)
        if len(depths) != len(channels) - 1:
            raise ValueError(f"depths must be one shorter than channels, got {len(depths)} and {len(channels)}")
        if any(dim % 2 for dim in channels[1:]):
            raise ValueError(f"channels but the finest map's must be even, got {tuple(channels)}")
        rates = torch.linspace(drop_path_rate, 0, sum(depths), device="cpu").split(list(depths))
        back = list(channels)[::-1]
        self.stages = nn.ModuleList(
            MSVMStage(dim, dim_out, rates[i].tolist(), scan)
            for i, (dim, dim_out) in enumerate(zip(back[:-1], back[1:], strict=True))
        )
        self.up = LargeKernelPatchExpand(back[-1], back[-1], scale)
        self.head = nn.Conv2d(back[-1], num_classes, 1) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (b, channels[i], h_i, w_i), finest first, to logits (b, num_classes, scale h_0, scale w_0)."""
        x = maps[-1]
        for stage, skip in zip(self.stages, maps[-2::-1], strict=True):
            x = stage(x, skip)
        return self.head(self.up(x).permute(0, 3, 1, 2))


def _encoder_name(match: re.Match) -> str:
    """Names of the encoder to those of the classifier's files, then to ours."""
    name = match[1]
    for pattern, new in (
        (r"^layer0\.", "patch_embed."),
        (r"^layer1\.0\.", "patch_embed.5."),
        (r"^layer1\.2\.", "patch_embed.7."),
        (r"^downsamples\.(\d+)\.", r"layers.\1.downsample."),
    ):
        name = re.sub(pattern, new, name)
    return "encoder.model." + VMamba.layout.rename(name)


@register("msvm_unet")
@register("test_msvm_unet", encoder="test_vmamba", encoder_args=dict(dims=(16, 32, 48, 64), depths=(1, 1, 1, 1)))
class MSVMUNet(SegmentationModel):
    """MSVM-UNet (arXiv:2408.13735).

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images; those of one are repeated to three.
        encoder: Name of a timm model whose features are four maps; published are `vmamba_tiny_s1l8` and
            `vmamba_small_s1l20`.
        encoder_weights: Start the encoder from its classifier's weights: a file, or True to download them.
        encoder_args: Further arguments of the encoder, for example `out_indices`.
        depths: Blocks of each stage of the decoder, coarsest first.
        drop_path_rate: Stochastic depth of the encoder's last block, and of the decoder's first.
        scan: Name of the decoder's scan order.
        pad: Take any size, see `SegmentationModel`.

    Raises:
        CheckpointError: the encoder's file does not fit.
        ValueError: the encoder has not four maps, or an argument is out of its range.
    """

    gray = True
    prefix = r"^_model\."
    classifier = "decoder.head"
    linear_std = None  # the parts initialise themselves: the encoder may be pretrained
    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^decoder\.stages\.",
        tell_tale=(r"(^|\.)encoder\.layer0\.0\.", r"(^|\.)decoder\.layers\.\d+\.vss_layer\."),
        names=(
            (r"^encoder\.(.*)$", _encoder_name),
            (r"^decoder\.layers\.(\d+)\.vss_layer\.", r"decoder.stages.\1."),
            (r"^decoder\.layers\.(\d+)\.concat_layer\.", r"decoder.stages.\1.join."),
            (r"^decoder\.layers\.", "decoder.stages."),
            (r"^decoder\.out_layers\.0\.out\.", "decoder.head."),
            (r"^decoder\.out_layers\.0\.", "decoder.up."),
            (r"\.up\.expand\.0\.", ".up.widen."),
            (r"\.up\.expand\.1\.", ".up.bn."),
            (r"\.up\.expand\.3\.", ".up.conv."),
            (r"\.multiscale_conv\.dw_convs\.", ".convs."),
            (
                r"^decoder\.(stages\.\d+\.blocks\..*)$",
                lambda match: "decoder." + VMamba.layout.rename(match[1].replace("stages.", "layers.", 1)),
            ),
        ),
    )

    def __init__(
        self,
        num_classes: int = 9,
        in_chans: int = 3,
        encoder: str = "vmamba_tiny_s1l8",
        encoder_weights: bool | str = False,
        encoder_args: Mapping[str, Any] | None = None,
        depths: Sequence[int] = (2, 2, 2),
        drop_path_rate: float = 0.2,
        scan: str = "cross",
        pad: bool = True,
    ):
        args: dict[str, Any] = {"drop_path_rate": drop_path_rate, **(encoder_args or {})}
        if isinstance(encoder_weights, str):
            args["pretrained_cfg_overlay"] = {"file": encoder_weights}
        backbone = timm.create_model(
            encoder,
            pretrained=bool(encoder_weights),
            features_only=True,
            in_chans=3 if in_chans == 1 else in_chans,
            **args,
        )
        info = backbone.feature_info
        reductions, channels = info.reduction(), info.channels()
        if len(reductions) != 4 or any(b != 2 * a for a, b in zip(reductions, reductions[1:], strict=False)):
            raise ValueError(
                f"MSVM-UNet's encoder gives four maps, each half as large as the one before; {encoder} gives maps of "
                f"strides {tuple(reductions)}: choose four by encoder_args=dict(out_indices=...)"
            )
        super().__init__(in_chans, num_classes, reductions[-1], pad)
        self.channels_last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")
        self.encoder = backbone
        if encoder_weights:
            _logger.info("%s weights fill all of the encoder; the decoder begins anew", encoder)
        self.decoder = MSVMDecoder(channels, num_classes, depths, drop_path_rate, reductions[0], scan)

    def forward_logits(self, x: Tensor) -> Tensor:
        """The model itself, for sides that are multiples of `size_multiple`."""
        maps = self.encoder(x)
        return self.decoder([m.permute(0, 3, 1, 2) for m in maps] if self.channels_last else maps)

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Refuse an authors' file for an encoder that theirs has not."""
        if "encoder.model.stem.conv1.weight" in state_dict and not any(
            name.startswith("encoder.model.stem.conv1.") for name in self.state_dict()
        ):
            raise CheckpointError("the file's encoder is a VMamba of the second generation, the model's is not")
        return state_dict
