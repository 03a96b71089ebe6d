"""SegMamba: Mamba over volumes along three routes, forwards, backwards and across the slices, in a U-shaped network.

Paper: SegMamba: Long-range Sequential Modeling Mamba For 3D Medical Image Segmentation, https://arxiv.org/abs/2401.13560
Original code: https://github.com/ge-xing/SegMamba (no licence stated; written here from the description alone)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import MambaMixer
from ._base import SegmentationModel
from ._registry import register

__all__ = ["TRI_ROUTES", "SegMamba"]

# routes of the mixer in published files, by the name of the stacked parameter; see `Layout.stack`
TRI_ROUTES = {
    "conv_weight": ("conv1d.weight", "conv1d_b.weight", "conv1d_s.weight"),
    "conv_bias": ("conv1d.bias", "conv1d_b.bias", "conv1d_s.bias"),
    "ssm.x_proj_weight": ("x_proj.weight", "x_proj_b.weight", "x_proj_s.weight"),
    "ssm.dt_weight": ("dt_proj.weight", "dt_proj_b.weight", "dt_proj_s.weight"),
    "ssm.dt_bias": ("dt_proj.bias", "dt_proj_b.bias", "dt_proj_s.bias"),
    "ssm.A_log": ("A_log", "A_b_log", "A_s_log"),
    "ssm.D": ("D", "D_b", "D_s"),
}
SCAN = "bidirectional+vertical"  # of the table slices x pixels of a slice


class TriMambaBlock(nn.Module):
    """x + Mamba over the voxels along three routes.

    Args:
        dim: Channels.
        slices: Parts that the voxels are cut into for the third route; None for the slices of the volume.
    """

    def __init__(self, dim: int, slices: int | None = None):
        super().__init__()
        self.slices = slices
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.mixer = MambaMixer(dim, SCAN)

    def forward(self, x: Tensor) -> Tensor:
        """A volume (b, dim, d, h, w) to one of the same shape."""
        size = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        slices = size[0] if self.slices is None else self.slices
        if tokens.shape[1] % slices:
            raise ValueError(f"a map of {tuple(size)} cannot be cut into {slices} equal slices; leave slices=None")
        y = self.mixer(self.norm(tokens), slices, tokens.shape[1] // slices)
        return x + y.transpose(1, 2).unflatten(2, size)


class GatedConv(nn.Module):
    """x + convolutions in two branches ("gated spatial convolution"; the branches are added, not multiplied)."""

    def __init__(self, dim: int):
        super().__init__()
        self.proj = nn.Conv3d(dim, dim, 3, padding=1)
        self.proj2 = nn.Conv3d(dim, dim, 3, padding=1)
        self.proj3 = nn.Conv3d(dim, dim, 1)
        self.proj4 = nn.Conv3d(dim, dim, 1)
        self.norm = nn.InstanceNorm3d(dim, eps=1e-5)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """A volume to one of the same shape."""

        def step(conv: nn.Module, y: Tensor) -> Tensor:
            return self.act(self.norm(conv(y)))

        return x + step(self.proj4, step(self.proj2, step(self.proj, x)) + step(self.proj3, x))


class ConvBlock(nn.Module):
    """Two convolutions without biases, and a skip that is projected where the channels change."""

    def __init__(self, dim: int, dim_out: int):
        super().__init__()
        self.conv1 = nn.Conv3d(dim, dim_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(dim_out, dim_out, 3, padding=1, bias=False)
        self.conv3 = nn.Conv3d(dim, dim_out, 1, bias=False) if dim != dim_out else None
        self.norm = nn.InstanceNorm3d(dim_out, eps=1e-5)
        self.act = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, ...) to (b, dim_out, ...)."""
        y = self.norm(self.conv2(self.act(self.norm(self.conv1(x)))))
        return self.act(y + (x if self.conv3 is None else self.norm(self.conv3(x))))


class SegMambaStage(nn.Module):
    """Halve, gated convolutions, Mamba; returns the map, and what the decoder reads of it."""

    def __init__(self, downsample: nn.Module, dim: int, depth: int, slices: int | None):
        super().__init__()
        self.downsample = downsample
        self.gate = GatedConv(dim)
        self.blocks = nn.Sequential(*(TriMambaBlock(dim, slices) for _ in range(depth)))
        self.norm = nn.InstanceNorm3d(dim, eps=1e-5)
        self.fc1 = nn.Conv3d(dim, 2 * dim, 1)
        self.fc2 = nn.Conv3d(2 * dim, dim, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(b, c, d, h, w) to two maps (b, dim, d / 2, h / 2, w / 2)."""
        x = self.blocks(self.gate(self.downsample(x)))
        return x, self.fc2(F.gelu(self.fc1(self.norm(x))))


class UpStage(nn.Module):
    """Double the size, join with a skip, then convolutions."""

    def __init__(self, dim: int, dim_out: int):
        super().__init__()
        self.up = nn.ConvTranspose3d(dim, dim_out, 2, stride=2, bias=False)
        self.block = ConvBlock(2 * dim_out, dim_out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(b, dim, ...), and a skip of twice its size, to the skip's shape."""
        return self.block(torch.cat([self.up(x), skip], dim=1))


@register("segmamba")
@register("test_segmamba", dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), hidden_dim=16)
class SegMamba(SegmentationModel):
    """SegMamba (arXiv:2401.13560), for volumes.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the volumes.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        hidden_dim: Channels at the bottom of the decoder.
        slices: Parts that the third route cuts each stage's voxels into, as the original fixes them: (64, 32, 16, 8)
            for volumes of 128 slices, right for these only. None for each map's own slices, which is the same there.
        pad: Take any size, see `SegmentationModel`.

    Raises:
        ValueError: an argument is out of its range, or two do not fit each other.
    """

    min_cells = 2
    classifier = "head"
    linear_std = None
    undecayed = (".ssm.D", ".ssm.dt_bias", ".conv_bias")
    layout = Layout(
        own=r"^stages\.0\.downsample\.",
        tell_tale=(r"(^|\.)vit\.stages\.0\.0\.mamba\.A_s_log$", r"(^|\.)vit\.gscs\.0\."),
        stack={f"mamba.{name}": tuple(f"mamba.{r}" for r in routes) for name, routes in TRI_ROUTES.items()},
        names=(
            (r"^vit\.downsample_layers\.(\d+)\.(\d+)\.", r"stages.\1.downsample.\2."),
            (r"^vit\.gscs\.(\d+)\.", r"stages.\1.gate."),
            (r"^vit\.stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"^vit\.mlps\.(\d+)\.", r"stages.\1."),
            (r"\.mamba\.", ".mixer."),
            (r"\.conv\.weight$", ".weight"),
            (r"^encoder(\d)\.layer\.", lambda match: f"encoder.{int(match[1]) - 1}."),
            (r"^decoder1\.layer\.", "last."),
            (r"^decoder(\d)\.transp_conv\.", lambda match: f"decoder.{5 - int(match[1])}.up."),
            (r"^decoder(\d)\.conv_block\.", lambda match: f"decoder.{5 - int(match[1])}.block."),
            (r"^out\.conv\.(conv\.)?", "head."),
        ),
    )

    def __init__(
        self,
        num_classes: int = 4,
        in_chans: int = 4,
        dims: Sequence[int] = (48, 96, 192, 384),
        depths: Sequence[int] = (2, 2, 2, 2),
        hidden_dim: int = 768,
        slices: Sequence[int] | None = None,
        pad: bool = True,
    ):
        super().__init__(in_chans, num_classes, 2 ** len(dims), pad, spatial_dims=3)
        if not len(dims) == len(depths) == len(slices or dims):
            raise ValueError(f"dims, depths and slices must be of one length, got {dims}, {depths} and {slices}")

        def downsample(i: int) -> nn.Module:
            if i == 0:
                return nn.Sequential(nn.Conv3d(in_chans, dims[0], 7, stride=2, padding=3))
            norm = nn.InstanceNorm3d(dims[i - 1], eps=1e-5)
            return nn.Sequential(norm, nn.Conv3d(dims[i - 1], dims[i], 2, stride=2))

        self.stages = nn.ModuleList(
            SegMambaStage(downsample(i), dim, depth, slices[i] if slices else None)
            for i, (dim, depth) in enumerate(zip(dims, depths, strict=True))
        )
        widths = [in_chans, *dims, hidden_dim]
        outs = [dims[0], *dims[1:], hidden_dim]
        self.encoder = nn.ModuleList([ConvBlock(in_chans, dims[0])])
        self.encoder.extend(ConvBlock(dim, dim_out) for dim, dim_out in zip(widths[1:-1], outs[1:], strict=True))
        back = [hidden_dim, *reversed(dims)]
        self.decoder = nn.ModuleList(UpStage(dim, dim_out) for dim, dim_out in zip(back[:-1], back[1:], strict=True))
        self.last = ConvBlock(dims[0], dims[0])
        self.head = nn.Conv3d(dims[0], num_classes, 1)

    def forward_logits(self, x: Tensor) -> Tensor:
        """The model itself, for sides that are multiples of `size_multiple`."""
        skips = [self.encoder[0](x)]
        for stage, block in zip(self.stages, list(self.encoder)[1:], strict=True):
            x, out = stage(x)
            skips.append(block(out))
        x = skips.pop()
        for up in self.decoder:
            x = up(x, skips.pop())
        return self.head(self.last(x))
