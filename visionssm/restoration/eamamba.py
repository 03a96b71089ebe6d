"""EAMamba: scans of groups of channels, each along a route of its own, in a U-Net and in residual groups.

Paper: EAMamba: Efficient All-Around Vision State Space Model for Image Restoration, ICCV 2025
Original code: https://github.com/daidaijr/EAMamba (no licence; written from a description of it)
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import SS2D_NAMES, MapConv2d, ResidualBlock, SelectiveSSM, split_linear
from ..scans import num_routes, scan_table
from ._registry import register
from ._shells import GROUP_NAMES, UNET_NAMES, GroupedRestorer, ReconstructionHead, ShuffleUNet, norm

__all__ = ["AllAroundScan", "EAMambaSR", "EAMambaUNet"]

_STRAIGHT = "raster+raster_flip+raster_t+raster_t_flip"
_NAMES = (
    (r"\.norm(\d)\.body\.", r".norm\1."),
    (r"^norm\.body\.", "norm."),
    (r"\.mamba\.", ".mixer."),
    (r"\.ffn\.project_in\.", ".mlp.fc1."),
    (r"\.ffn\.project_out\.", ".mlp.fc2."),
    *SS2D_NAMES,
)


class AllAroundScan(nn.Module):
    """The gated mixer of EAMamba, on maps (b, h, w, c).

    Args:
        dim: Channels of the map.
        d_state: States per channel.
        expand: Channels of the scan per channel of the map.
        scan: "diagonal" or "zigzag" for the first four routes, on the map, its half turn and its two mirror images;
            None for rows and columns both ways alone.
        routes: 8, the last four of them rows and columns both ways, or 4.
        merge: "concat": each route scans one of `routes` groups of channels; "add": each scans all, and they are
            summed.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        expand: int = 1,
        scan: str | None = "diagonal",
        routes: int = 8,
        merge: str = "concat",
    ):
        super().__init__()
        if scan not in ("diagonal", "zigzag", None):
            raise ValueError(f"scan must be 'diagonal', 'zigzag' or None, got {scan!r}")
        if routes not in ((4,) if scan is None else (4, 8)):
            raise ValueError(f"scan={scan!r} has {'4' if scan is None else '4 or 8'} routes, got {routes}")
        if merge not in ("concat", "add"):
            raise ValueError(f"merge must be 'concat' or 'add', got {merge!r}")
        inner = expand * dim
        if merge == "concat" and inner % routes:
            raise ValueError(f"the channels of the scan must be a multiple of {routes}, got {inner}")
        self.base = scan
        self.routes = routes
        self.merge = merge
        self.scan = self.scan_name(0)
        assert num_routes(self.scan) == routes
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = MapConv2d(inner, inner, 3, padding=1, groups=inner)
        self.act = nn.SiLU()
        group = inner // routes if merge == "concat" else inner
        self.ssm = SelectiveSSM(group, routes, d_state, math.ceil(dim / 16), shared_input=merge == "add")
        self.out_norm = norm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def scan_name(self, height: int) -> str:
        """Name of the scan order on maps of so many rows; zigzags begin to the right on even ones."""
        if self.base is None:
            return _STRAIGHT
        base = self.base if self.base == "diagonal" else f"zigzag[{height % 2}]"
        turned = f"{base}+{base}_r180+{base}_mirror+{base}_updown"
        return f"{turned}+{_STRAIGHT}" if self.routes == 8 else turned

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same shape."""
        height, width = x.shape[1:3]
        x, z = split_linear(self.in_proj, x)
        x = self.act(self.conv(x)).flatten(1, 2)
        order = scan_table(self.scan_name(height), height, width, x.device)
        if self.merge == "concat":
            x = self.ssm(x.unflatten(2, (self.routes, -1)), order, out="route").flatten(2)
        else:
            x = self.ssm(x, order)
        return self.out_proj(self.out_norm(x.unflatten(1, (height, width))) * self.act(z))


class ProductMlp(nn.Module):
    """Project, multiply the two halves, project back; no bias, no activation."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=False)
        self.fc2 = nn.Linear(hidden // 2, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape."""
        first, second = split_linear(self.fc1, x)
        return self.fc2(first * second)


def _block(dim: int, mlp_ratio: float, **mixer) -> ResidualBlock:
    hidden = int(mlp_ratio * dim)
    if hidden % 2:
        raise ValueError(f"mlp_ratio * dim must be even, as the MLP multiplies its halves; got {hidden}")
    return ResidualBlock(norm(dim), AllAroundScan(dim, **mixer), norm(dim), ProductMlp(dim, hidden))


@register("eamamba")
@register("test_eamamba", dim=8, depths=(1,) * 4, refinement=1, d_state=2)
class EAMambaUNet(ShuffleUNet):
    """EAMamba's U-Net, for any image size of at least 4 x 4 and outputs of that size.

    Args:
        in_chans: Channels of the images.
        dim: Channels of the first level, doubled from level to level.
        depths: Blocks of each level.
        refinement: Blocks after the decoder.
        mlp_ratio: Channels inside the MLP per channel of the map.
        d_state: States per channel of the scan.
        expand: Channels of the scan per channel of the map.
        scan: As of `AllAroundScan`.
        routes: As of `AllAroundScan`.
        merge: As of `AllAroundScan`.
        pad: Mirror images to sides that are multiples of 8, and crop; else other sizes are refused.

    Raises:
        ValueError: an argument is out of its range.
    """

    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^embed\.",
        tell_tale=(r"^encoder_level1\.\d+\.mamba\.A_logs$", r"^latent\.\d+\.mamba\."),
        names=(*UNET_NAMES, *_NAMES),
        drop=r"^upsample\.",  # the original's default makes one for a model of no change in size, and never runs it
    )

    def __init__(
        self,
        in_chans: int = 3,
        dim: int = 64,
        depths: Sequence[int] = (4, 6, 6, 7),
        refinement: int = 2,
        mlp_ratio: float = 2.0,
        d_state: int = 16,
        expand: int = 1,
        scan: str | None = "diagonal",
        routes: int = 8,
        merge: str = "concat",
        pad: bool = True,
    ):
        mixer = dict(d_state=d_state, expand=expand, scan=scan, routes=routes, merge=merge)
        super().__init__(
            lambda width: _block(width, mlp_ratio, **mixer), dim, depths, refinement, in_chans, in_chans, pad=pad
        )
        self.init_weights(needs_reset=False)


@register("eamamba_sr_light")
@register("test_eamamba_sr", scale=2, dim=16, depths=(1, 1), d_state=2)
class EAMambaSR(GroupedRestorer):
    """EAMamba's light network for super-resolution, for any image size.

    Args:
        scale: How many times larger the output's sides are.
        in_chans: Channels of the images.
        dim: Channels.
        depths: Blocks of each residual group.
        mlp_ratio: Channels inside the MLP per channel of the map.
        d_state: States per channel of the scan.
        expand: Channels of the scan per channel of the map.
        scan: As of `AllAroundScan`.
        routes: As of `AllAroundScan`.
        merge: As of `AllAroundScan`.

    Raises:
        ValueError: an argument is out of its range.
    """

    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^head\.",
        tell_tale=(r"^layers\.\d+\.blocks\.\d+\.mamba\.A_logs$", r"^layers\.\d+\.blocks\.\d+\.ffn\.project_in\."),
        names=(*GROUP_NAMES, *_NAMES),
    )

    def __init__(
        self,
        scale: int = 4,
        in_chans: int = 3,
        dim: int = 64,
        depths: Sequence[int] = (4,) * 4,
        mlp_ratio: float = 1.0,
        d_state: int = 10,
        expand: int = 1,
        scan: str | None = "diagonal",
        routes: int = 8,
        merge: str = "concat",
    ):
        mixer = dict(d_state=d_state, expand=expand, scan=scan, routes=routes, merge=merge)
        super().__init__(
            [[_block(dim, mlp_ratio, **mixer) for _ in range(depth)] for depth in depths],
            dim,
            in_chans,
            scale,
            lambda dim, out_chans, scale: ReconstructionHead(dim, out_chans, scale, "pixelshuffle", dim, bias=False),
            embed_norm=False,
            bias=False,
        )
        self.init_weights(needs_reset=False)
