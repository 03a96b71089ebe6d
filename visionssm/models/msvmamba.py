"""MSVMamba: one route over the map, three over a map of half the size.

Paper: Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model, https://arxiv.org/abs/2405.14174
Original code and weights: https://github.com/YuHengsss/MSVMamba (no licence is stated)

Two lines are published. The first (nano, micro, tiny) has gated mixers of twice the block's width, which normalise each
route, and embeds and downsamples by patches. The later one ("v3") has mixers of the block's width, which normalise the
merged map, norms after the MLP, and embeds and downsamples by convolutions. Maps are (batch, height, width, channels)
from stem to head; any input size works.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout, shifted
from ..layers import (
    ConvDownsample,
    ConvStem,
    MapConv2d,
    PatchMerging,
    PatchStem,
    ResidualBlock,
    SelectiveSSM,
    SqueezeExcite,
    split_linear,
    state_dtype,
)
from ..ops import selective_scan
from ..scans import num_routes, scan_table
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["MSVMamba"]


class TwoMapSSM(SelectiveSSM):
    """`SelectiveSSM` of two routes that read different maps."""

    def __init__(self, dim: int, d_state: int, dt_rank: int, device=None, dtype=None):
        super().__init__(dim, 2, d_state, dt_rank, device=device, dtype=dtype)

    def forward(self, x: Tensor, route: int, order: Tensor, out: str) -> Tensor:
        """One route over tokens (b, L, d), by a scan table (1, T); `out` and the result as of `selective_scan`."""
        delta, b, c = F.linear(x, self.x_proj_weight[route]).split(self.splits, dim=-1)
        return selective_scan(
            x,
            delta,
            -torch.exp(state_dtype(self.A_log[route : route + 1])),
            b,
            c,
            state_dtype(self.D[route : route + 1]),
            state_dtype(self.dt_bias[route : route + 1]),
            dt_weight=self.dt_weight[route : route + 1],
            order=order,
            out=out,
            out_dtype=self.D.dtype,
        )


class MultiScaleMixer(nn.Module):
    """Projection, two depthwise convolutions, a scan of the map each makes, sum, gates, projection.

    One convolution keeps the size of the map, the other halves it; the smaller map is enlarged after its scan (section
    3.2 of the paper).

    Args:
        dim: Channels.
        dim_inner: Channels of the scans.
        d_state: States per channel.
        gated: Multiply the output by SiLU of a second projection.
        norm_routes: Normalise each route's steps, enlarge bilinearly; else normalise the sum, repeat pixels.
        low_first: The smaller map's parameters come first.
        scan: Name of the order of the map, of one route.
        low_scan: Name of the order of the smaller map, of one route.
        kit: What the model's parts share.
    """

    def __init__(
        self,
        dim: int,
        dim_inner: int,
        d_state: int,
        gated: bool,
        norm_routes: bool,
        low_first: bool,
        scan: str,
        low_scan: str,
        kit: Kit,
    ):
        dd = kit.dd
        super().__init__()
        self.scan = scan
        self.low_scan = low_scan
        self.gated = gated
        self.norm_routes = norm_routes
        self.low = 0 if low_first else 1
        self.in_proj = nn.Linear(dim, 2 * dim_inner if gated else dim_inner, bias=False, **dd)
        self.conv = MapConv2d(dim_inner, dim_inner, 3, padding=1, groups=dim_inner, **dd)
        self.low_conv = MapConv2d(dim_inner, dim_inner, 7, stride=2, padding=3, groups=dim_inner, **dd)
        self.act = nn.SiLU()
        self.ssm = TwoMapSSM(dim_inner, d_state, math.ceil(dim / 16), **dd)
        self.out_norm = kit.norm_layer(dim_inner, **dd)
        self.se = SqueezeExcite(dim_inner, dim_inner // 8, bias=False, **dd)
        self.out_proj = nn.Linear(dim_inner, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(kit.proj_drop)

    def _scan_low(self, x: Tensor) -> Tensor:
        """The smaller map scanned, (b, h, w, dim_inner); its steps may visit a token repeatedly."""
        size = (x.shape[1], x.shape[2])
        order = scan_table(self.low_scan, *size, x.device)
        if not self.norm_routes:
            return self.ssm(x.flatten(1, 2), self.low, order, "sum").unflatten(1, size)
        steps = self.out_norm(self.ssm(x.flatten(1, 2), self.low, order, "step").flatten(1, 2))
        tokens = size[0] * size[1]
        added = state_dtype(steps)
        merged = added.new_zeros(steps.shape[0], tokens + 1, steps.shape[2])  # one more takes what padding gives
        place = torch.where(order < 0, tokens, order).flatten()
        merged = merged.index_add(1, place.long(), added)  # ONNX takes no other index
        return merged[:, :tokens].unflatten(1, size).to(steps.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns the same shape."""
        size = (x.shape[1], x.shape[2])
        x, z = split_linear(self.in_proj, x) if self.gated else (self.in_proj(x), None)
        order = scan_table(self.scan, *size, x.device)
        full = self.ssm(self.act(self.conv(x)).flatten(1, 2), 1 - self.low, order, "sum").unflatten(1, size)
        low = self._scan_low(self.act(self.low_conv(x))).permute(0, 3, 1, 2)
        if self.norm_routes:
            y = self.out_norm(full) + F.interpolate(low, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
        else:
            y = self.out_norm(full + F.interpolate(low, size, mode="nearest").permute(0, 2, 3, 1))
        y = self.se(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if z is not None:
            y = y * self.act(z)
        return self.proj_drop(self.out_proj(y))


class ConvMlp(nn.Module):
    """MLP with a depthwise convolution added between its layers.

    Args:
        dim: Channels.
        hidden: Channels inside.
        norm: Norm of the output, or None.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, hidden: int, norm: nn.Module | None, kit: Kit):
        super().__init__()
        self.fc1 = MapConv2d(dim, hidden, 1, **kit.dd)
        self.conv = MapConv2d(hidden, hidden, 3, padding=1, groups=hidden, **kit.dd)
        self.act = kit.act_layer()
        self.fc2 = MapConv2d(hidden, dim, 1, **kit.dd)
        self.drop = nn.Dropout(kit.proj_drop)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to one of the same shape."""
        x = self.fc1(x)
        return self.norm(self.drop(self.fc2(self.act(x + self.conv(x)))))


class MSVMamba(HierarchicalModel):
    """MSVMamba (arXiv:2405.14174).

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        d_state: States per channel of the scan.
        ssm_ratio: Channels of the scan over channels of the block; 2.0 of the first line, 1.0 of v3, if None.
        gated: Gate the mixer's output; True of the first line, False of v3, if None.
        mlp_ratio: Hidden width of the MLP over channels of the block; 2.0 of the first line, 4.0 of v3, if None.
        v3: Build the later line.
        scan: Name of the scan order of the map, see `visionssm.scans`; of one route.
        low_scan: Name of the scan order of the smaller map, of one route, which may visit tokens repeatedly.
        **shared: Arguments of `HierarchicalModel`.

    Raises:
        ValueError: a scan order has several routes.
    """

    # there D was a vector, here it is (routes, channels)
    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^stem\.conv1?\.weight$",
        tell_tale=(
            r"(^|\.)layers\.\d+\.blocks\.\d+\.(op|self_attention)\.x_proj_weight$",
            r"(^|\.)layers\.\d+\.blocks\.\d+\.(op|self_attention)\.conv2d_b1\.weight$",
        ),
        names=(
            (r"^patch_embed\.5\.", "stem.conv2."),
            (r"^patch_embed\.7\.", "stem.norm2."),
            # as the earliest files write it
            (r"^patch_embed\.proj\.", "patch_embed.0."),
            (r"^patch_embed\.norm\.", "patch_embed.2."),
            (r"\.ln_1\.", ".norm."),
            (r"\.self_attention\.", ".op."),
            (r"^norm\.", "classifier.norm."),
            (r"^head\.", "classifier.head."),
            (r"^patch_embed\.0\.", "stem.conv1."),
            (r"^patch_embed\.2\.", "stem.norm1."),
            # there a stage ends with the downsampling, here the next one begins with it
            (r"^layers\.(\d+)\.downsample\.1\.", shifted("stages.{}.downsample.conv.")),
            (r"^layers\.(\d+)\.downsample\.3\.", shifted("stages.{}.downsample.norm.")),
            (r"^layers\.(\d+)\.downsample\.", shifted("stages.{}.downsample.")),
            (r"^layers\.(\d+)\.blocks\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm1."),
            (r"^layers\.", "stages."),
            (r"\.convFFN\.linear(\d)\.", r".mlp.fc\1."),
            (r"\.convFFN\.dwc\.", ".mlp.conv."),
            (r"\.op\.conv2d\.", ".mixer.conv."),
            (r"\.op\.conv2d_b1\.", ".mixer.low_conv."),
            (r"\.op\.se\.fc\.0\.", ".mixer.se.fc1."),
            (r"\.op\.se\.fc\.2\.", ".mixer.se.fc2."),
            (r"\.op\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.op\.dt_projs_weight$", ".mixer.ssm.dt_weight"),
            (r"\.op\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
            (r"\.op\.A_logs$", ".mixer.ssm.A_log"),
            (r"\.op\.Ds$", ".mixer.ssm.D"),
            (r"\.op\.", ".mixer."),
            (r"^classifier\.norm\.", "norm."),
            (r"^classifier\.head\.", "head.fc."),
        ),
    )

    def __init__(
        self,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (1, 2, 9, 2),
        d_state: int = 1,
        ssm_ratio: float | None = None,
        gated: bool | None = None,
        mlp_ratio: float | None = None,
        v3: bool = False,
        scan: str = "raster",
        low_scan: str = "ms2d_low",
        **shared: Any,
    ):
        for name, order in (("scan", scan), ("low_scan", low_scan)):
            if num_routes(order) != 1:
                raise ValueError(
                    f"MSVMamba scans each of its two maps along one route, but {name}={order!r} has "
                    f"{num_routes(order)} routes; take one of them, for example '{order}[0]'"
                )
        ratio = (1.0 if v3 else 2.0) if ssm_ratio is None else ssm_ratio
        hidden = (4.0 if v3 else 2.0) if mlp_ratio is None else mlp_ratio
        gate = not v3 if gated is None else gated

        def block(place: Place, kit: Kit) -> ResidualBlock:
            dim, dd = place.dim, kit.dd
            mixer = MultiScaleMixer(dim, int(ratio * dim), d_state, gate, not v3, not v3, scan, low_scan, kit)
            norm2 = kit.norm_layer(dim, **dd)
            mlp = ConvMlp(dim, int(hidden * dim), norm2 if v3 else None, kit)
            return ResidualBlock(kit.norm_layer(dim, **dd), mixer, None if v3 else norm2, mlp, place.drop_path)

        def stem(in_chans: int, dim: int, kit: Kit) -> nn.Module:
            if v3:
                return ConvStem(in_chans, dim, kit.act_layer, kit.norm_layer, **kit.dd)
            return PatchStem(in_chans, dim, norm_layer=kit.norm_layer, **kit.dd)

        def downsample(dim: int, dim_out: int, kit: Kit) -> nn.Module:
            return (ConvDownsample if v3 else PatchMerging)(dim, dim_out, kit.norm_layer, **kit.dd)

        super().__init__(dims, depths, stem=stem, downsample=downsample, block=block, **shared)
        self.scan = scan
        self.low_scan = low_scan
        self.v3 = v3

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The files of both lines give the first layers of the stems, and the MLP's norms, one name."""
        pattern, new = (r"\.norm2\.", ".mlp.norm.") if self.v3 else (r"^stem\.(conv|norm)1\.", r"stem.\1.")
        return {
            name if self.v3 and name.startswith("stem.") else re.sub(pattern, new, name): value
            for name, value in state_dict.items()
        }


_cfg = family_cfg(
    license="unknown",
    origin_url="https://github.com/YuHengsss/MSVMamba",
    paper_name="Multi-Scale VMamba: Hierarchy in Hierarchy Visual State Space Model",
    paper_ids="arXiv:2405.14174",
    first_conv="stem.conv",
    classifier="head.fc",
    pool_size=(7, 7),
)
_V3 = dict(first_conv="stem.conv1")


def _v3_cfg(name: str) -> dict[str, Any]:
    return _cfg(**_V3, hf_hub_id="YuhengSSS/MSVMamba", hf_hub_filename=f"{name}_224.pth")


default_cfgs = generate_default_cfgs(
    {
        "msvmamba_nano.in1k": _cfg(),
        "msvmamba_micro.in1k": _cfg(),
        "msvmamba_tiny.in1k": _cfg(),
        "msvmambav3_tiny.in1k": _v3_cfg("msvmambav3_tiny"),
        "msvmambav3_small.in1k": _v3_cfg("msvmambav3_small"),
        "msvmambav3_base.in1k": _v3_cfg("msvmambav3_base"),
        "test_msvmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
        "test_msvmambav3.untrained": _cfg(**_V3, input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def msvmamba_nano(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-N."""
    return build_model(MSVMamba, "msvmamba_nano", pretrained, kwargs, dims=48, depths=(1, 2, 5, 2))


@register_model
def msvmamba_micro(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-M."""
    return build_model(MSVMamba, "msvmamba_micro", pretrained, kwargs, dims=64, depths=(1, 2, 5, 2))


@register_model
def msvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMamba-T."""
    return build_model(MSVMamba, "msvmamba_tiny", pretrained, kwargs, dims=96, depths=(1, 2, 9, 2))


@register_model
def msvmambav3_tiny(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMambav3-T."""
    return build_model(MSVMamba, "msvmambav3_tiny", pretrained, kwargs, dims=96, depths=(2, 2, 9, 2), v3=True)


@register_model
def msvmambav3_small(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMambav3-S."""
    return build_model(MSVMamba, "msvmambav3_small", pretrained, kwargs, dims=96, depths=(2, 3, 20, 2), v3=True)


@register_model
def msvmambav3_base(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """MSVMambav3-B, the only gated one of its line."""
    args = dict(dims=128, depths=(2, 4, 18, 2), gated=True, v3=True)
    return build_model(MSVMamba, "msvmambav3_base", pretrained, kwargs, **args)


@register_model
def test_msvmamba(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """A pico variant of the first line for tests and demonstrations; there are no weights."""
    args = dict(dims=(16, 24, 48, 64), depths=(1, 1, 1, 1))
    return build_model(MSVMamba, "test_msvmamba", pretrained, kwargs, **args)


@register_model
def test_msvmambav3(pretrained: bool = False, **kwargs: Any) -> MSVMamba:
    """A pico variant of v3 for tests and demonstrations; there are no weights."""
    args = dict(dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), mlp_ratio=2.0, v3=True)
    return build_model(MSVMamba, "test_msvmambav3", pretrained, kwargs, **args)
