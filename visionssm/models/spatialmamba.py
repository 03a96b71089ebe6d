"""Spatial-Mamba: one scan, whose states are mixed with those of their neighbours on the map before they are read out.

Paper: Spatial-Mamba: Effective Visual State Space Models via Structure-aware State Fusion,
https://arxiv.org/abs/2410.15091
Original code and weights: https://github.com/EdwardChasel/Spatial-Mamba (Apache-2.0)

The scan has one state per channel and returns the states themselves. Maps are (batch, height, width, channels) from
stem to head; any input size works.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout, shifted
from ..layers import (
    BottleneckDownsample,
    MapConv2d,
    ResidualBlock,
    ResidualConvStem,
    SelectiveSSM,
    split_linear,
    state_dtype,
)
from ..ops import selective_scan
from ..scans import num_routes, scan_table
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["SpatialMamba"]

_DILATIONS = (1, 3, 5)


class StateFusion(nn.Module):
    """Weighted sum of three depthwise 3 x 3 convolutions of dilations 1, 3 and 5 (section 3.3 of the paper).

    The border is replicated, not padded with zeros.

    Args:
        dim: Channels.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.empty(len(_DILATIONS), dim, 1, 3, 3, device=device, dtype=dtype))
        self.alpha = nn.Parameter(torch.empty(len(_DILATIONS), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with plain sums."""
        nn.init.ones_(self.weight)
        nn.init.ones_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to the same shape."""
        height, width, border = x.shape[1], x.shape[2], _DILATIONS[-1]
        padded = F.pad(x.permute(0, 3, 1, 2), (border,) * 4, mode="replicate")
        kernels = self.weight * self.alpha.view(-1, 1, 1, 1, 1)
        out = None
        for i, dilation in enumerate(_DILATIONS):
            cut = border - dilation
            part = padded[:, :, cut : cut + height + 2 * dilation, cut : cut + width + 2 * dilation]
            part = F.conv2d(part, kernels[i].to(part.dtype), dilation=dilation, groups=self.dim)
            out = part if out is None else out + part
        return out.permute(0, 2, 3, 1)


class StateSSM(SelectiveSSM):
    """`SelectiveSSM` of one route and one state per channel, whose states are fused on the map before they are read."""

    def __init__(self, dim: int, dt_rank: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, 1, 1, dt_rank, **dd)
        self.fusion = StateFusion(dim, **dd)

    def forward(self, x: Tensor, order: Tensor) -> Tensor:  # type: ignore[override]
        """A map (b, h, w, d) and a scan table (1, h w) to a map of the same shape, in the parameters' dtype."""
        u = x.flatten(1, 2)
        delta, b, c = F.linear(u, self.x_proj_weight[0]).split(self.splits, dim=-1)
        states = selective_scan(
            u,
            delta,
            -torch.exp(state_dtype(self.A_log)),
            b,
            delta_bias=state_dtype(self.dt_bias),
            dt_weight=self.dt_weight,
            order=order,
            out_dtype=self.D.dtype,
        )
        fused = self.fusion(states.unflatten(1, x.shape[1:3])).flatten(1, 2)
        return (fused * c + self.D[0] * u).unflatten(1, x.shape[1:3])


class SpatialMixer(nn.Module):
    """Projection, depthwise convolution, scan with fused states, norm, gate, projection.

    Args:
        dim: Channels of the map.
        scan: Name of a scan order of one route.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, scan: str, kit: Kit):
        super().__init__()
        dim_inner, dd = 2 * dim, kit.dd
        self.scan = scan
        self.in_proj = nn.Linear(dim, 2 * dim_inner, bias=False, **dd)
        self.conv = MapConv2d(dim_inner, dim_inner, 3, padding=1, groups=dim_inner, **dd)
        self.act = nn.SiLU()
        self.ssm = StateSSM(dim_inner, math.ceil(dim / 16), **dd)
        self.out_norm = kit.norm_layer(dim_inner, **dd)
        self.out_proj = nn.Linear(dim_inner, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(kit.proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns the same shape."""
        x, z = split_linear(self.in_proj, x)
        order = scan_table(self.scan, x.shape[1], x.shape[2], x.device)
        x = self.out_norm(self.ssm(self.act(self.conv(x)), order))
        return self.proj_drop(self.out_proj(x * self.act(z)))


class SpatialMamba(HierarchicalModel):
    """Spatial-Mamba (arXiv:2410.15091).

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        mlp_ratio: Hidden width of the MLP over channels of the block.
        scan: Name of a scan order of one route, see `visionssm.scans`.
        **shared: Arguments of `HierarchicalModel`.

    Raises:
        ValueError: the scan order has several routes.
    """

    # there D and the bias of the step size were vectors, here they are (1, channels); A_log was decayed
    undecayed = (".ssm.D", ".ssm.dt_bias")
    layout = Layout(
        own=r"\.ssm\.fusion\.weight$",
        tell_tale=(
            r"(^|\.)layers\.\d+\.blocks\.\d+\.self_attention\.state_fusion\.alpha$",
            r"\.self_attention\.x_proj",
        ),
        stack={"fusion.weight": ("state_fusion.kernel_3", "state_fusion.kernel_3_1", "state_fusion.kernel_3_2")},
        names=(
            (r"^(patch_embed\.conv.*)\.norm\.", r"\1.bn."),
            (r"^patch_embed\.", "stem."),
            (r"^layers\.(\d+)\.downsample\.conv\.0\.conv\.", shifted("stages.{}.downsample.expand.")),
            (r"^layers\.(\d+)\.downsample\.conv\.1\.conv\.", shifted("stages.{}.downsample.conv.")),
            (r"^layers\.(\d+)\.downsample\.conv\.2\.norm\.", shifted("stages.{}.downsample.project.bn.")),
            (r"^layers\.(\d+)\.downsample\.conv\.2\.", shifted("stages.{}.downsample.project.")),
            (r"^layers\.", "stages."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.(fusion\.|state_fusion\.)", r".mixer.ssm.fusion."),
            (r"\.self_attention\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.self_attention\.dt_projs_weight$", ".mixer.ssm.dt_weight"),
            (r"\.self_attention\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
            (r"\.self_attention\.A_logs$", ".mixer.ssm.A_log"),
            (r"\.self_attention\.Ds$", ".mixer.ssm.D"),
            (r"\.self_attention\.conv2d\.", ".mixer.conv."),
            (r"\.self_attention\.", ".mixer."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
    )

    def __init__(
        self,
        dims: int | Sequence[int] = 64,
        depths: Sequence[int] = (2, 4, 8, 4),
        mlp_ratio: float = 4.0,
        scan: str = "raster",
        **shared: Any,
    ):
        if num_routes(scan) != 1:
            raise ValueError(
                f"Spatial-Mamba fuses the states of one route, but scan={scan!r} has {num_routes(scan)} routes; "
                "take one of them, for example with 'raster'"
            )

        def block(place: Place, kit: Kit) -> ResidualBlock:
            dim, dd = place.dim, kit.dd
            return ResidualBlock(
                kit.norm_layer(dim, **dd),
                SpatialMixer(dim, scan, kit),
                kit.norm_layer(dim, **dd),
                Mlp(dim, int(mlp_ratio * dim), act_layer=kit.act_layer, drop=kit.proj_drop, **dd),
                place.drop_path,
                cpe1=MapConv2d(dim, dim, 3, padding=1, groups=dim, **dd),
                cpe2=MapConv2d(dim, dim, 3, padding=1, groups=dim, **dd),
            )

        super().__init__(
            dims,
            depths,
            stem=lambda in_chans, dim, kit: ResidualConvStem(in_chans, dim, **kit.dd),
            downsample=lambda dim, dim_out, kit: BottleneckDownsample(dim, dim_out, **kit.dd),
            block=block,
            **shared,
        )
        self.scan = scan


_cfg = family_cfg(
    license="apache-2.0",
    origin_url="https://github.com/EdwardChasel/Spatial-Mamba",
    paper_name="Spatial-Mamba: Effective Visual State Space Models via Structure-aware State Fusion",
    paper_ids="arXiv:2410.15091",
    first_conv="stem.conv1.conv",
    classifier="head.fc",
    pool_size=(7, 7),
)

default_cfgs = generate_default_cfgs(
    {
        "spatialmamba_tiny.in1k": _cfg(),
        "spatialmamba_small.in1k": _cfg(),
        "spatialmamba_base.in1k": _cfg(),
        "test_spatialmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def spatialmamba_tiny(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-T."""
    return build_model(SpatialMamba, "spatialmamba_tiny", pretrained, kwargs, dims=64, depths=(2, 4, 8, 4))


@register_model
def spatialmamba_small(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-S."""
    return build_model(SpatialMamba, "spatialmamba_small", pretrained, kwargs, dims=64, depths=(2, 4, 21, 5))


@register_model
def spatialmamba_base(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """Spatial-Mamba-B."""
    return build_model(SpatialMamba, "spatialmamba_base", pretrained, kwargs, dims=96, depths=(2, 4, 21, 5))


@register_model
def test_spatialmamba(pretrained: bool = False, **kwargs: Any) -> SpatialMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(16, 24, 32, 48), depths=(1, 1, 1, 1), mlp_ratio=2.0)
    return build_model(SpatialMamba, "test_spatialmamba", pretrained, kwargs, **args)
