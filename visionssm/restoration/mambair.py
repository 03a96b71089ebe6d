"""MambaIR: residual groups of selective scans and channel attention, and its denoising U-Net.

Paper: MambaIR: A Simple Baseline for Image Restoration with State-Space Model, https://arxiv.org/abs/2402.15648
Original code: https://github.com/csguoh/MambaIR (Apache-2.0)
"""

import math
from collections.abc import Sequence

import torch
from timm.layers import DropPath, SEModule, calculate_drop_path_rates
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import SS2D, SS2D_NAMES
from ..scans import check_scan
from ._registry import register
from ._shells import GROUP_NAMES, RGB_MEAN, UNET_NAMES, GroupedRestorer, ReconstructionHead, ShuffleUNet, norm

__all__ = ["MambaIR", "MambaIRUNet"]


_BLOCK_NAMES = (
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.", ".mixer."),
    (r"\.conv_blk\.cab\.(\d)\.attention\.1\.", r".cab.\1.fc1."),
    (r"\.conv_blk\.cab\.(\d)\.attention\.3\.", r".cab.\1.fc2."),
    (r"\.conv_blk\.cab\.", ".cab."),
    *SS2D_NAMES,
)


class ChannelAttentionBlock(nn.Sequential):
    """Convolutions with a bottleneck, then channel attention, on maps (b, c, h, w).

    Args:
        dim: Channels, at least 30.
        light: Pointwise and depthwise convolutions instead of full ones.
    """

    def __init__(self, dim: int, light: bool):
        attention = SEModule(dim, rd_channels=dim // 30, act_layer=nn.ReLU)
        if light:
            mid = dim // 2
            super().__init__(
                nn.Conv2d(dim, mid, 1),
                nn.Conv2d(mid, mid, 3, padding=1, groups=mid),
                nn.GELU(),
                nn.Conv2d(mid, dim, 1),
                nn.Conv2d(dim, dim, 3, padding=2, dilation=2, groups=dim),
                attention,
            )
        else:
            mid = dim // 3
            super().__init__(nn.Conv2d(dim, mid, 3, padding=1), nn.GELU(), nn.Conv2d(mid, dim, 3, padding=1), attention)


class ScaledResidualBlock(nn.Module):
    """scale x + mixer(norm(x)), then scale x + attention(norm(x)); each branch is learned a scale of its shortcut.

    Args:
        dim: Channels, at least 30.
        d_state: States per channel of the scan.
        ratio: Channels of the scan per channel of the map.
        light: The light form of the channel attention block.
        scan: Name of the scan order.
        drop_path: Stochastic depth of the scan's branch.
    """

    def __init__(self, dim: int, d_state: int, ratio: float, light: bool, scan: str, drop_path: float = 0.0):
        super().__init__()
        self.skip_scale = nn.Parameter(torch.ones(dim))
        self.skip_scale2 = nn.Parameter(torch.ones(dim))
        self.norm1 = norm(dim)
        self.mixer = SS2D(
            dim, int(ratio * dim), d_state, math.ceil(dim / 16), scan, gated=True, conv_bias=True, norm_layer=norm
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm(dim)
        self.cab = ChannelAttentionBlock(dim, light)

    def reset_parameters(self) -> None:
        """Begin with plain skips."""
        nn.init.ones_(self.skip_scale)
        nn.init.ones_(self.skip_scale2)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to a map of the same shape."""
        x = x * self.skip_scale + self.drop_path(self.mixer(self.norm1(x)))
        return x * self.skip_scale2 + self.cab(self.norm2(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _check_width(dim: int) -> None:
    if dim < 30:
        raise ValueError(f"dim must be at least 30, as channel attention keeps one channel in 30; got {dim}")


@register("mambair_sr")
@register("mambair_light", dim=60, depths=(6,) * 4, d_state=10, ratio=1.2, upsampler="pixelshuffledirect")
@register("mambair_dn", scale=1, ratio=1.2, upsampler="")
@register("mambair_jpeg", in_chans=1, scale=1, ratio=1.2, upsampler="")
@register("test_mambair", scale=2, dim=30, depths=(1, 1), d_state=2, ratio=1.2, upsampler="pixelshuffledirect")
class MambaIR(GroupedRestorer):
    """MambaIR (arXiv:2402.15648), for any image size.

    Args:
        scale: How many times larger the output's sides are.
        in_chans: Channels of the images.
        dim: Channels, at least 30.
        depths: Blocks of each residual group.
        d_state: States per channel of the scan.
        ratio: Channels of the scan per channel of the map (`mlp_ratio` in the original).
        upsampler: "pixelshuffle", "pixelshuffledirect" (with the light form of the blocks), or "" for `scale=1`.
        connection: Convolutions after a group, "1conv" or "3conv".
        img_range: What images are multiplied by inside; 255 in some early configurations.
        scan: Name of the scan order.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^embed_norm\.",
        tell_tale=(r"^layers\.\d+\.residual_group\.blocks\.\d+\.skip_scale$",),
        drop=r"^relative_position_index_SA$",
        names=((r"\.residual_group\.blocks\.", ".blocks."), *GROUP_NAMES, *_BLOCK_NAMES),
    )

    def __init__(
        self,
        scale: int = 4,
        in_chans: int = 3,
        dim: int = 180,
        depths: Sequence[int] = (6,) * 6,
        d_state: int = 16,
        ratio: float = 2.0,
        upsampler: str = "pixelshuffle",
        connection: str = "1conv",
        img_range: float = 1.0,
        scan: str = "cross",
        drop_path_rate: float = 0.0,
    ):
        _check_width(dim)
        check_scan(scan)
        if upsampler not in ("pixelshuffle", "pixelshuffledirect", ""):
            raise ValueError(f"upsampler must be 'pixelshuffle', 'pixelshuffledirect' or '', got {upsampler!r}")
        light = upsampler == "pixelshuffledirect"
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        super().__init__(
            [[ScaledResidualBlock(dim, d_state, ratio, light, scan, rate) for rate in group] for group in rates],
            dim,
            in_chans,
            scale,
            lambda dim, out_chans, scale: ReconstructionHead(dim, out_chans, scale, upsampler),
            img_range,
            RGB_MEAN,
            connection,
            add_input=upsampler == "",
        )
        self.init_weights(needs_reset=False)


@register("mambair_unet")
@register("test_mambair_unet", dim=30, depths=(1,) * 4, refinement=1, d_state=2)
class MambaIRUNet(ShuffleUNet):
    """MambaIR's U-Net for real noise (arXiv:2402.15648), for any image size of at least 4 x 4.

    Args:
        in_chans: Channels of the images; 6 for pairs of dual-pixel images.
        out_chans: Channels of the output.
        dim: Channels of the first level, doubled from level to level; at least 30.
        depths: Blocks of each level.
        refinement: Blocks after the decoder.
        d_state: States per channel of the scan.
        ratio: Channels of the scan per channel of the map (`mlp_ratio` in the original).
        dual_pixel: The form for dual-pixel images: the embedding is added before the last convolution, not the image.
        scan: Name of the scan order.
        pad: Mirror images to sides that are multiples of 8, and crop; else other sizes are refused.

    Raises:
        ValueError: an argument is out of its range.
    """

    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^embed\.",
        tell_tale=(r"^encoder_level1\.\d+\.skip_scale$", r"^latent\.\d+\.self_attention\."),
        names=(*UNET_NAMES, *_BLOCK_NAMES),
    )

    def __init__(
        self,
        in_chans: int = 3,
        out_chans: int = 3,
        dim: int = 48,
        depths: Sequence[int] = (4, 6, 6, 8),
        refinement: int = 4,
        d_state: int = 16,
        ratio: float = 1.5,
        dual_pixel: bool = False,
        scan: str = "cross",
        pad: bool = True,
    ):
        _check_width(dim)
        check_scan(scan)
        super().__init__(
            lambda width: ScaledResidualBlock(width, d_state, ratio, False, scan),
            dim,
            depths,
            refinement,
            in_chans,
            out_chans,
            dual_pixel,
            pad,
        )
        self.init_weights(needs_reset=False)
