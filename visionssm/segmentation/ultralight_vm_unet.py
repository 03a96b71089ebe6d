"""UltraLight VM-UNet: fifty thousand parameters, one small Mamba for all quarters of the channels.

Paper: UltraLight VM-UNet: Parallel Vision Mamba Significantly Reduces Parameters for Skin Lesion Segmentation,
https://arxiv.org/abs/2403.20035
Original code: https://github.com/wurenkai/UltraLight-VM-UNet (MIT)
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import MambaMixer, ResidualMamba
from ..scans import check_scan
from ._base import MAMBA_NAMES, SegmentationModel
from ._registry import register

__all__ = ["UltraLightVMUNet"]

_GROUPS = 4  # quarters of the channels, and groups of the norms


class SkipAttention(nn.Module):
    """Weigh the skips: pixels by one convolution for all maps, channels by what all maps hold ("SC-Att bridge")."""

    def __init__(self, dims: Sequence[int]):
        super().__init__()
        self.spatial = nn.Conv2d(2, 1, 7, padding=9, dilation=3)
        self.mix = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.channels = nn.ModuleList(nn.Linear(sum(dims), dim) for dim in dims)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (b, dims[i], h_i, w_i) to maps of the same shapes."""
        weighed = []
        for x in maps:
            extremes = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
            weighed.append(torch.sigmoid(self.spatial(extremes)) * x)
        summed = [a + x for a, x in zip(weighed, maps, strict=True)]
        means = self.mix(torch.cat([b.mean((2, 3)) for b in summed], dim=1).unsqueeze(1)).squeeze(1)
        return [
            torch.sigmoid(linear(means))[:, :, None, None] * b + a
            for linear, a, b in zip(self.channels, weighed, summed, strict=True)
        ]


@register("ultralight_vm_unet")
@register("test_ultralight_vm_unet", dims=(4, 4, 8, 8, 12, 12))
class UltraLightVMUNet(SegmentationModel):
    """UltraLight VM-UNet (arXiv:2403.20035): six levels, convolutions in the first three and Mamba in the others.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images.
        dims: Channels of the six levels, multiples of 4.
        bridge: Weigh the skips; else they are added as they are.
        scan: Name of the scan order.
        pad: Take any size, see `SegmentationModel`.

    Raises:
        ValueError: `dims` are not six multiples of 4, or another argument is out of its range.
    """

    classifier = "head"
    linear_std = 0.02
    undecayed = (".ssm.D", ".ssm.dt_bias", ".conv_bias")
    layout = Layout(
        own=r"^encoder\.\d+\.(weight|proj\.weight)$",
        tell_tale=(r"^ebn1\.", r"^dbn1\.", r"^encoder6\.0\.mamba\."),
        names=(
            *MAMBA_NAMES,
            (r"^(encoder|decoder)([1-6])\.0\.", lambda match: f"{match[1]}.{int(match[2]) - 1}."),
            (r"^ebn([1-5])\.", lambda match: f"encoder_norms.{int(match[1]) - 1}."),
            (r"^dbn([1-5])\.", lambda match: f"decoder_norms.{int(match[1]) - 1}."),
            (r"^scab\.catt\.get_all_att\.", "bridge.mix."),
            (r"^scab\.catt\.att([1-5])\.", lambda match: f"bridge.channels.{int(match[1]) - 1}."),
            (r"^scab\.satt\.shared_conv2d\.0\.", "bridge.spatial."),
            (r"^final\.", "head."),
        ),
    )

    def __init__(
        self,
        num_classes: int = 1,
        in_chans: int = 3,
        dims: Sequence[int] = (8, 16, 24, 32, 48, 64),
        bridge: bool = True,
        scan: str = "raster",
        pad: bool = True,
    ):
        super().__init__(in_chans, num_classes, 32, pad)
        check_scan(scan)
        if len(dims) != 6 or any(dim < 1 or dim % _GROUPS for dim in dims):
            raise ValueError(f"dims must be six multiples of {_GROUPS}, got {tuple(dims)}")

        def conv(dim: int, dim_out: int) -> nn.Module:
            return nn.Conv2d(dim, dim_out, 3, padding=1)

        def mamba(dim: int, dim_out: int) -> nn.Module:
            return ResidualMamba(dim, dim_out, _GROUPS, skip_norm=True, scan=scan)

        widths = [in_chans, *dims]
        self.encoder = nn.ModuleList(
            (conv if i < 3 else mamba)(dim, dim_out) for i, (dim, dim_out) in enumerate(zip(widths, dims, strict=False))
        )
        self.encoder_norms = nn.ModuleList(nn.GroupNorm(_GROUPS, dim) for dim in dims[:5])
        self.bridge = SkipAttention(dims[:5]) if bridge else None
        back = list(reversed(dims))
        self.decoder = nn.ModuleList(
            (mamba if i < 3 else conv)(dim, dim_out)
            for i, (dim, dim_out) in enumerate(zip(back[:-1], back[1:], strict=True))
        )
        self.decoder_norms = nn.ModuleList(nn.GroupNorm(_GROUPS, dim) for dim in back[1:])
        self.head = nn.Conv2d(dims[0], num_classes, 1)
        self.init_weights(needs_reset=False)

    def forward_logits(self, x: Tensor) -> Tensor:
        """The model itself, for sides that are multiples of `size_multiple`."""
        skips = []
        for layer, norm in zip(self.encoder, self.encoder_norms, strict=False):
            x = F.gelu(F.max_pool2d(norm(layer(x)), 2))
            skips.append(x)
        x = F.gelu(self.encoder[-1](x))
        if self.bridge is not None:
            skips = self.bridge(skips)
        for i, (layer, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=True)):
            x = norm(layer(x))
            x = F.gelu(_double(x) if i else x) + skips[4 - i]
        return _double(self.head(x))

    def init_own_weights(self, mode: str) -> None:
        """As the original, whose rule for linear layers and convolutions reaches into Mamba's and takes its step size.

        There delta begins at softplus(0).
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv1d):
                nn.init.normal_(module.weight, std=math.sqrt(2 / (module.kernel_size[0] * module.out_channels)))
            elif isinstance(module, MambaMixer):
                channels, taps = module.conv_weight.shape[1:]
                nn.init.normal_(module.conv_weight, std=math.sqrt(2 / (taps * channels)))
                trunc_normal_(module.ssm.x_proj_weight, std=0.02)
                trunc_normal_(module.ssm.dt_weight, std=0.02)
                nn.init.zeros_(module.ssm.dt_bias)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
