"""From an image (b, c, h, w) to a map (b, h / 4, w / 4, dim) with contiguous channels."""

from functools import partial

from timm.layers import LayerNorm
from torch import Tensor, nn

from .conv_norm_act import ConvNormAct
from .downsample import ConvDownsample


def _channels_last(x: Tensor) -> Tensor:
    # the image is small: copying it saves copies of every map that follows
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class PatchStem(nn.Module):
    """One convolution over non-overlapping patches, then a norm; leftover rows and columns are cut.

    Args:
        in_chans: Channels of the image.
        dim: Channels out.
        patch_size: Side of a patch.
        norm_layer: Norm after the convolution.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch_size: int = 4,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size, **dd)
        self.norm = norm_layer(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, h // patch_size, w // patch_size, dim)."""
        return self.norm(self.conv(_channels_last(x)).permute(0, 2, 3, 1))


class DeepConvStem(nn.Module):
    """Three convolutions at half resolution, then one of stride 2 and a layer norm; odd sizes round up.

    Args:
        in_chans: Channels of the image.
        dim_hidden: Channels between the convolutions.
        dim: Channels out.
    """

    def __init__(self, in_chans: int, dim_hidden: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = ConvNormAct(in_chans, dim_hidden, 7, stride=2, padding=3, **dd)
        self.conv2 = ConvNormAct(dim_hidden, dim_hidden, 3, padding=1, **dd)
        self.conv3 = ConvNormAct(dim_hidden, dim_hidden, 3, padding=1, **dd)
        self.down = ConvDownsample(dim_hidden, dim, norm_layer=partial(LayerNorm, eps=1e-5), **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, ceil(h / 4), ceil(w / 4), dim)."""
        return self.down(self.conv3(self.conv2(self.conv1(_channels_last(x)))).permute(0, 2, 3, 1))


class ConvStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2, each with a norm, an activation between; odd sizes round up.

    Args:
        in_chans: Channels of the image.
        dim: Channels out; half as many between the convolutions.
        act_layer: Activation between the convolutions.
        norm_layer: Norm after each convolution.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1, **dd)
        self.norm1 = norm_layer(dim // 2, **dd)
        self.act = act_layer()
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1, **dd)
        self.norm2 = norm_layer(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, ceil(h / 4), ceil(w / 4), dim)."""
        x = self.act(self.norm1(self.conv1(_channels_last(x)).permute(0, 2, 3, 1)))
        return self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class ResidualConvStem(nn.Module):
    """A convolution of stride 2, a residual pair, an inverted bottleneck of stride 2, with batch norms and ReLUs.

    Odd sizes round up.

    Args:
        in_chans: Channels of the image.
        dim: Channels out.
    """

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        half = dim // 2
        self.conv1 = ConvNormAct(in_chans, half, 3, stride=2, padding=1, **dd)
        self.conv2 = nn.Sequential(
            ConvNormAct(half, half, 3, padding=1, **dd), ConvNormAct(half, half, 3, padding=1, apply_act=False, **dd)
        )
        self.conv3 = nn.Sequential(
            ConvNormAct(half, 4 * dim, 3, stride=2, padding=1, **dd),
            ConvNormAct(4 * dim, dim, 1, apply_act=False, **dd),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, ceil(h / 4), ceil(w / 4), dim)."""
        x = self.conv1(_channels_last(x))
        return self.conv3(x + self.conv2(x)).permute(0, 2, 3, 1)
