"""What stands around the blocks of several systems: residual groups with a head, and a U-Net of shuffled pixels."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..layers import MapConv2d
from ._base import RestorationModel

# published files of both shells write these so
GROUP_NAMES = (
    (r"^patch_embed\.norm\.", "embed_norm."),
    (r"^layers\.(\d+)\.", r"groups.\1."),
    (r"^conv_before_upsample\.0\.", "head.before."),
    (r"^upsample\.", "head.upsample."),
    (r"^conv_(up1|up2|hr|last)\.", r"head.\1."),
)
UNET_NAMES = (
    (r"^patch_embed\.proj\.", "embed."),
    (r"^encoder_level(\d)\.", lambda match: f"encoder.{int(match[1]) - 1}."),
    (r"^decoder_level(\d)\.", lambda match: f"decoder.{int(match[1]) - 1}."),
    (r"^latent\.", "encoder.3."),
    (r"^down(\d)_\d\.body\.0\.", lambda match: f"down.{int(match[1]) - 1}."),
    (r"^up\d_(\d)\.body\.0\.", lambda match: f"up.{int(match[1]) - 1}."),
    (r"^reduce_chan_level(\d)\.", r"reduce.\1."),
)
norm = partial(LayerNorm, eps=1e-5)
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


class Blocks(nn.Sequential):
    """Blocks of maps (b, h, w, c), recomputed in the backward on request."""

    def __init__(self, *blocks: nn.Module):
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same shape."""
        return checkpoint_seq(list(self), x) if self.grad_checkpointing else super().forward(x)


class ResidualGroup(nn.Module):
    """x + conv(blocks(x)), on maps (b, h, w, c)."""

    def __init__(self, blocks: Sequence[nn.Module], conv: nn.Module):
        super().__init__()
        self.blocks = Blocks(*blocks)
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same shape."""
        return x + self.conv(self.blocks(x))


class ReconstructionHead(nn.Module):
    """Features to an image.

    Args:
        dim: Channels of the features.
        out_chans: Channels of the image.
        scale: How many times larger the image is.
        upsampler: "pixelshuffle", "pixelshuffledirect", "nearest+conv" (four times larger), or "" for the same size.
        width: Channels between the layers of "pixelshuffle" and "nearest+conv".
        bias: Bias of the last convolution of "pixelshuffle".
    """

    def __init__(self, dim: int, out_chans: int, scale: int, upsampler: str, width: int = 64, bias: bool = True):
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=1)
        self.upsampler = upsampler
        if upsampler == "pixelshuffle":
            factors = [3] if scale == 3 else [2] * int(math.log2(scale))
            self.before = conv(dim, width)
            self.upsample = nn.Sequential(
                *(part for f in factors for part in (conv(width, f * f * width), nn.PixelShuffle(f)))
            )
            self.last = conv(width, out_chans, bias=bias)
        elif upsampler == "pixelshuffledirect":
            self.upsample = nn.Sequential(conv(dim, scale * scale * out_chans), nn.PixelShuffle(scale))
        elif upsampler == "nearest+conv":
            if scale != 4:
                raise ValueError(f"upsampler 'nearest+conv' enlarges 4 times, got scale={scale}")
            self.before = conv(dim, width)
            self.up1, self.up2, self.hr = (conv(width, width) for _ in range(3))
            self.last = conv(width, out_chans)
        elif upsampler == "":
            if scale != 1:
                raise ValueError(f"upsampler '' keeps the size, got scale={scale}")
            self.last = conv(dim, out_chans)
        else:
            raise ValueError(
                f"upsampler must be 'pixelshuffle', 'pixelshuffledirect', 'nearest+conv' or '', got {upsampler!r}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to (b, out_chans, scale h, scale w)."""
        if self.upsampler == "pixelshuffledirect":
            return self.upsample(x)
        if self.upsampler == "":
            return self.last(x)
        x = F.leaky_relu(self.before(x))
        if self.upsampler == "pixelshuffle":
            return self.last(self.upsample(x))
        for up in (self.up1, self.up2):
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        return self.last(F.leaky_relu(self.hr(x), 0.2))


class GroupedRestorer(RestorationModel):
    """Shallow features, residual groups of blocks, a convolution, the features added, a head (SwinIR's shell).

    Args:
        groups: Blocks of each group, of maps (b, h, w, dim).
        dim: Channels.
        in_chans: Channels of the images.
        scale: How many times larger the output's sides are.
        head: Makes of (dim, out_chans, scale) what makes the image.
        img_range: What images are multiplied by inside.
        mean: Subtracted from images of as many channels before, and added after; None for nothing.
        connection: Convolutions after a group, "1conv" or "3conv".
        embed_norm: Norm the shallow features.
        bias: Bias of the first convolution and the one after the groups.
        add_input: Add the image to the output.
        size_multiple: As of `RestorationModel`.
        pad: As of `RestorationModel`.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[nn.Module]],
        dim: int,
        in_chans: int,
        scale: int,
        head: Callable[[int, int, int], nn.Module],
        img_range: float = 1.0,
        mean: Sequence[float] | None = None,
        connection: str = "1conv",
        embed_norm: bool = True,
        bias: bool = True,
        add_input: bool = False,
        size_multiple: int = 1,
        pad: bool = True,
    ):
        super().__init__(in_chans, scale, size_multiple, pad)
        if connection not in ("1conv", "3conv"):
            raise ValueError(f"connection must be '1conv' or '3conv', got {connection!r}")
        self.img_range = img_range
        self.mean = tuple(mean) if mean is not None and len(mean) == in_chans else None
        self.add_input = add_input
        self.conv_first = nn.Conv2d(in_chans, dim, 3, padding=1, bias=bias)
        self.embed_norm = norm(dim) if embed_norm else nn.Identity()
        self.groups = nn.ModuleList(ResidualGroup(blocks, _connection(dim, connection)) for blocks in groups)
        self.norm = norm(dim)
        self.conv_after_body = _connection(dim, connection, bias)
        self.head = head(dim, in_chans, scale)

    def restore(self, x: Tensor) -> Tensor:
        """The model itself, for sides that are multiples of `size_multiple`."""
        mean = None if self.mean is None else torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
        x = x * self.img_range if mean is None else (x - mean) * self.img_range
        y = self.features(x)
        y = self.head(y)
        y = (x + y if self.add_input else y) / self.img_range
        return y if mean is None else y + mean

    def features(self, x: Tensor) -> Tensor:
        """Normalised images (b, c, h, w) to what the head reads, (b, dim, h, w)."""
        first = self.conv_first(x)
        y = self.embed_norm(first.permute(0, 2, 3, 1))
        y = self.run_groups(y)
        return self.conv_after_body(self.norm(y)).permute(0, 3, 1, 2) + first

    def run_groups(self, x: Tensor) -> Tensor:
        """The groups, on a map (b, h, w, dim)."""
        for group in self.groups:
            x = group(x)
        return x


def _connection(dim: int, kind: str, bias: bool = True) -> nn.Module:
    if kind == "1conv":
        return MapConv2d(dim, dim, 3, padding=1, bias=bias)
    return nn.Sequential(
        MapConv2d(dim, dim // 4, 3, padding=1),
        nn.LeakyReLU(0.2),
        MapConv2d(dim // 4, dim // 4, 1),
        nn.LeakyReLU(0.2),
        MapConv2d(dim // 4, dim, 3, padding=1),
    )


class ShuffleUNet(RestorationModel):
    """A U-Net of four levels whose maps are resized by shuffling pixels (Restormer's shell).

    Args:
        block: block(dim) makes a block of maps (b, h, w, dim).
        dim: Channels of the first level, doubled from level to level.
        depths: Blocks of each level.
        refinement: Blocks after the decoder, of twice `dim`.
        in_chans: Channels of the images.
        out_chans: Channels of the output.
        dual_pixel: Add a projection of the embedding before the last convolution, and not the image after it.
        pad: As of `RestorationModel`.
    """

    def __init__(
        self,
        block: Callable[[int], nn.Module],
        dim: int,
        depths: Sequence[int],
        refinement: int,
        in_chans: int = 3,
        out_chans: int = 3,
        dual_pixel: bool = False,
        pad: bool = True,
    ):
        super().__init__(in_chans, 1, 8, pad)
        if len(depths) != 4:
            raise ValueError(f"depths must name the blocks of 4 levels, got {len(depths)}")
        if not dual_pixel and in_chans != out_chans:
            raise ValueError(
                f"the image is added to the output, so both have as many channels; got {in_chans} and {out_chans}"
            )
        conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
        dims = [dim * 2**i for i in range(4)]
        self.embed = conv(in_chans, dim)
        self.encoder = nn.ModuleList(Blocks(*(block(d) for _ in range(n))) for d, n in zip(dims, depths, strict=True))
        self.down = nn.ModuleList(conv(d, d // 2) for d in dims[:3])
        self.up = nn.ModuleList(conv(d, 2 * d) for d in dims[1:])
        self.reduce = nn.ModuleDict({str(i + 1): nn.Conv2d(2 * dims[i], dims[i], 1, bias=False) for i in (1, 2)})
        widths = [2 * dim, dims[1], dims[2]]
        self.decoder = nn.ModuleList(
            Blocks(*(block(d) for _ in range(n))) for d, n in zip(widths, depths[:3], strict=True)
        )
        self.refinement = Blocks(*(block(2 * dim) for _ in range(refinement)))
        self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=False) if dual_pixel else None
        self.output = conv(2 * dim, out_chans)

    def restore(self, x: Tensor) -> Tensor:
        """The model itself, for sides that are multiples of 8."""
        first = y = self.embed(x)
        skips: list[Tensor] = []
        for i, blocks in enumerate(self.encoder):
            if i:
                skips.append(y)
                y = F.pixel_unshuffle(self.down[i - 1](y), 2)
            y = _on_map(blocks, y)
        for i in (2, 1, 0):
            y = torch.cat([F.pixel_shuffle(self.up[i](y), 2), skips[i]], 1)
            if i:
                y = self.reduce[str(i + 1)](y)
            y = _on_map(self.decoder[i], y)
        y = _on_map(self.refinement, y)
        if self.skip_conv is not None:
            return self.output(y + self.skip_conv(first))
        return self.output(y) + x


def _on_map(blocks: nn.Module, x: Tensor) -> Tensor:
    return blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
