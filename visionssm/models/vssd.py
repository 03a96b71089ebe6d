"""VSSD: every token reads one state, to which all tokens add; the last stage attends.

Paper: VSSD: Vision Mamba with Non-Causal State Space Duality, https://arxiv.org/abs/2407.18559
Original code and weights: https://github.com/YuHengsss/VSSD (no licence is stated)

Written from a description of the model; no code of the original. Nothing is scanned, so there is no order of tokens.
Maps are (batch, height, width, channels) from stem to head; any input size works.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention, Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout, shifted
from ..layers import (
    BottleneckDownsample,
    MapConv2d,
    ResidualBlock,
    ResidualConvStem,
    init_dt_bias_,
    state_dtype,
)
from ..ops import noncausal_ssd
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["VSSD"]

_MIXERS = ("ssd", "attention")


class NonCausalMixer(nn.Module):
    """Projection, depthwise convolution, non-causal state-space duality, norm, gate, projection (section 3.2).

    The gate is linear, and the norm before it has a bias; Mamba-2 has SiLU and a root mean square there.

    Args:
        dim: Channels of the map.
        num_heads: Heads; each has one step size and one decay.
        d_state: States per head, read and written by all heads alike.
        expand: Channels that are mixed over channels of the map.
        negative_weights: Tokens add to the state with a negative sign, an option of the original that no published
            model uses.
        norm_layer: Norm of what the tokens read.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: the channels do not divide into heads.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        d_state: int = 64,
        expand: int = 2,
        negative_weights: bool = False,
        norm_layer: type[nn.Module] = nn.LayerNorm,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        dim_inner = expand * dim
        if dim_inner % num_heads:
            raise ValueError(f"{num_heads} heads do not divide the {dim_inner} channels that are mixed")
        conv_dim = dim_inner + 2 * d_state
        self.num_heads = num_heads
        self.negative_weights = negative_weights
        self.splits = (dim_inner, conv_dim, num_heads)
        self.conv_splits = (dim_inner, d_state, d_state)
        self.in_proj = nn.Linear(dim, sum(self.splits), bias=False, **dd)
        self.conv = MapConv2d(conv_dim, conv_dim, 3, padding=1, groups=conv_dim, **dd)
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(torch.empty(num_heads, **dd))
        self.A_log = nn.Parameter(torch.empty(num_heads, **dd))
        self.D = nn.Parameter(torch.empty(num_heads, **dd))
        self.out_norm = norm_layer(dim_inner, **dd)
        self.out_proj = nn.Linear(dim_inner, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as Mamba-2 does."""
        init_dt_bias_(self.dt_bias)
        with torch.no_grad():
            self.A_log.uniform_(1, 16).log_()
        nn.init.ones_(self.D)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns the same shape."""
        height, width = x.shape[1], x.shape[2]
        z, xbc, delta = self.in_proj(x).split(self.splits, dim=-1)
        x, b, c = self.act(self.conv(xbc)).flatten(1, 2).split(self.conv_splits, dim=-1)
        y = noncausal_ssd(
            x.unflatten(-1, (self.num_heads, -1)),
            delta.flatten(1, 2),
            -torch.exp(state_dtype(self.A_log)),
            -b if self.negative_weights else b,
            c,
            state_dtype(self.D),
            state_dtype(self.dt_bias),
        )
        y = self.out_norm(y.flatten(2).to(self.D.dtype)).unflatten(1, (height, width))
        return self.proj_drop(self.out_proj(y * z))


class MapAttention(Attention):
    """timm's attention between all pixels of a map."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(b, h, w, dim) to the same shape."""
        return super().forward(x.flatten(1, 2)).unflatten(1, (x.shape[1], x.shape[2]))


class VSSD(HierarchicalModel):
    """VSSD (arXiv:2407.18559).

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        num_heads: Heads of each stage.
        d_state: States per head.
        expand: Channels that are mixed over channels of the map.
        mixers: Mixer of each stage: "ssd", non-causal state-space duality, or "attention".
        mlp_ratio: Hidden width of the MLP over channels of the block.
        negative_weights: Tokens add to the states with a negative sign; no published model does.
        **shared: Further arguments of `HierarchicalModel`.

    Raises:
        ValueError: an unknown mixer, a number of stages that differs, or heads that do not divide channels.
    """

    layout = Layout(
        own=r"^stages\.\d+\.blocks\.\d+\.mixer\.dt_bias$",
        tell_tale=(
            r"(^|\.)layers\.\d+\.blocks\.\d+\.attn\.dt_bias$",
            r"(^|\.)layers\.\d+\.blocks\.\d+\.attn\.conv2d\.weight$",
        ),
        names=(
            (r"^(patch_embed\.conv.*)\.norm\.", r"\1.bn."),
            (r"^patch_embed\.", "stem."),
            (r"^layers\.(\d+)\.downsample\.conv\.0\.conv\.", shifted("stages.{}.downsample.expand.")),
            (r"^layers\.(\d+)\.downsample\.conv\.1\.conv\.", shifted("stages.{}.downsample.conv.")),
            (r"^layers\.(\d+)\.downsample\.conv\.2\.norm\.", shifted("stages.{}.downsample.project.bn.")),
            (r"^layers\.(\d+)\.downsample\.conv\.2\.", shifted("stages.{}.downsample.project.")),
            (r"^layers\.", "stages."),
            (r"\.attn\.to_qkv\.", ".mixer.qkv."),
            (r"\.attn\.to_out\.", ".mixer.proj."),
            (r"\.attn\.conv2d\.", ".mixer.conv."),
            (r"\.attn\.norm\.", ".mixer.out_norm."),
            (r"\.attn\.", ".mixer."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
    )

    def __init__(
        self,
        dims: int | Sequence[int] = 64,
        depths: Sequence[int] = (2, 4, 8, 4),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        d_state: int = 64,
        expand: int = 2,
        mixers: Sequence[str] = ("ssd", "ssd", "ssd", "attention"),
        mlp_ratio: float = 4.0,
        negative_weights: bool = False,
        **shared: Any,
    ):
        if not len(depths) == len(num_heads) == len(mixers):
            raise ValueError(
                "depths, num_heads and mixers must be of one length, got "
                f"{len(depths)}, {len(num_heads)} and {len(mixers)}"
            )
        if not set(mixers) <= set(_MIXERS):
            raise ValueError(f"mixers must be of {', '.join(map(repr, _MIXERS))}, got {list(mixers)}")

        def mixer(dim: int, stage: int, kit: Kit) -> nn.Module:
            heads = num_heads[stage]
            if mixers[stage] == "ssd":
                return NonCausalMixer(
                    dim, heads, d_state, expand, negative_weights, kit.norm_layer, kit.proj_drop, **kit.dd
                )
            if dim % heads:
                raise ValueError(f"{heads} heads do not divide the {dim} channels of stage {stage}")
            return MapAttention(dim, heads, proj_drop=kit.proj_drop, **kit.dd)

        def block(place: Place, kit: Kit) -> ResidualBlock:
            dim, dd = place.dim, kit.dd
            return ResidualBlock(
                kit.norm_layer(dim, **dd),
                mixer(dim, place.stage, kit),
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


_cfg = family_cfg(
    license="unknown",
    origin_url="https://github.com/YuHengsss/VSSD",
    paper_name="VSSD: Vision Mamba with Non-Causal State Space Duality",
    paper_ids="arXiv:2407.18559",
    first_conv="stem.conv1.conv",
    classifier="head.fc",
    pool_size=(7, 7),
)


def _hub(file: str) -> dict[str, str]:
    return dict(hf_hub_id="YuhengSSS/VSSD", hf_hub_filename=f"vssd_{file}.pth")


default_cfgs = generate_default_cfgs(
    {
        "vssd_micro.in1k": _cfg(**_hub("micro_best")),
        "vssd_tiny.in1k": _cfg(**_hub("tiny_best_ema")),
        "vssd_tiny.mesa_in1k": _cfg(**_hub("tiny_e300_with_mesa")),
        "vssd_small.in1k": _cfg(**_hub("small_best_ema")),
        "vssd_small.mesa_in1k": _cfg(**_hub("small_e300_with_mesa")),
        "vssd_base.in1k": _cfg(**_hub("base_best_ema")),
        "vssd_base.mesa_in1k": _cfg(**_hub("base_e300_with_mesa")),
        "test_vssd.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def vssd_micro(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-M."""
    return build_model(VSSD, "vssd_micro", pretrained, kwargs, dims=48, depths=(2, 2, 8, 4), d_state=48)


@register_model
def vssd_tiny(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-T."""
    return build_model(VSSD, "vssd_tiny", pretrained, kwargs, dims=64, depths=(2, 4, 8, 4))


@register_model
def vssd_small(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-S."""
    return build_model(VSSD, "vssd_small", pretrained, kwargs, dims=64, depths=(3, 4, 21, 5))


@register_model
def vssd_base(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """VSSD-B."""
    args = dict(dims=96, depths=(3, 4, 21, 5), num_heads=(3, 6, 12, 24))
    return build_model(VSSD, "vssd_base", pretrained, kwargs, **args)


@register_model
def test_vssd(pretrained: bool = False, **kwargs: Any) -> VSSD:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(16, 24, 32, 48), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 4), d_state=16, mlp_ratio=2.0)
    return build_model(VSSD, "test_vssd", pretrained, kwargs, **args)
