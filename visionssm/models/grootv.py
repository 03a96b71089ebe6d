"""GrootV: a hierarchical model whose states spread along a spanning tree of the map, grown from its features.

Paper: GrootVL: Tree Topology is All You Need in State Space Model, later MambaTree, https://arxiv.org/abs/2406.02395
Original code and weights: https://github.com/EasonXiao-888/GrootVL (MIT, by its README)

No scan order is given: each block builds the minimum spanning tree of its own map, on which every pixel gathers all
others, decayed along the path between them. Maps are (batch, height, width, channels) from stem to head; any input size
works.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout, shifted
from ..layers import ConvDownsample, ConvStem, MapHead, ResidualBlock, SelectiveSSM, split_linear, state_dtype
from ..ops import spanning_tree, tree_scan
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["GrootV"]


class TreeSSM(SelectiveSSM):
    """Selective state-space model on a tree, with one state per channel that is normalised before it is read.

    Args:
        dim: Channels d of the map.
        dt_rank: Rank of the step size's projection.
    """

    def __init__(self, dim: int, dt_rank: int, device=None, dtype=None):
        super().__init__(dim, routes=1, d_state=1, dt_rank=dt_rank, device=device, dtype=dtype)
        self.h_norm = LayerNorm(dim, eps=1e-5, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Spread states over a map (b, h, w, d); returns the same shape, in the parameters' dtype."""
        A, D, bias = (state_dtype(p)[0] for p in (self.A_log, self.D, self.dt_bias))
        dt, B, C = F.linear(x, self.x_proj_weight[0]).split(self.splits, dim=-1)
        # step size, input and decay are float32 whatever the map is
        x = x.to(A.dtype)
        delta = F.softplus(F.linear(dt, self.dt_weight[0]).to(A.dtype) + bias)
        decay = torch.exp(-delta * torch.exp(A.squeeze(-1)))
        h = tree_scan((delta * B * x).flatten(1, 2), decay.flatten(1, 2), spanning_tree(*edge_weights(x)))
        h = h.to(self.D.dtype).unflatten(1, x.shape[1:3])
        return (self.h_norm(h) * C + D * x).to(self.D.dtype)


def edge_weights(x: Tensor) -> tuple[Tensor, Tensor]:
    """exp(-cosine) of neighbouring pixels of a map (b, h, w, d): down (b, h - 1, w), and to the right (b, h, w - 1)."""
    x = x.detach()
    pairs = (x[:, :-1], x[:, 1:]), (x[:, :, :-1], x[:, :, 1:])
    down, right = (torch.exp(-F.cosine_similarity(*pair, dim=-1, eps=1e-8)) for pair in pairs)
    return down, right


class TreeMixer(nn.Module):
    """Projection, depthwise convolution, states on a tree, norm, gate, projection.

    Args:
        dim: Channels of the map; twice as many inside.
        proj_drop: Dropout after the output projection.
    """

    def __init__(self, dim: int, proj_drop: float = 0.0, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        dim_inner = 2 * dim
        self.in_proj = nn.Linear(dim, 2 * dim_inner, bias=False, **dd)
        self.conv = nn.Conv2d(dim_inner, dim_inner, 3, padding=1, groups=dim_inner, bias=False, **dd)
        self.act = nn.SiLU()
        self.ssm = TreeSSM(dim_inner, math.ceil(dim / 16), **dd)
        self.out_norm = LayerNorm(dim_inner, eps=1e-5, **dd)
        self.out_proj = nn.Linear(dim_inner, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns the same shape."""
        x, z = split_linear(self.in_proj, x)
        x = self.act(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        x = self.out_norm(self.ssm(x))
        return self.proj_drop(self.out_proj(x * self.act(z)))


class GrootVHead(MapHead):
    """1 x 1 convolution, batch norm and activation, mean over the map, classifier.

    Args:
        in_features: Channels of the map; half as many more before the classifier.
        num_classes: Classes; 0 for no classifier.
        pool_type: "avg"; or "" for a classifier at every position, and with no classifier for nothing but the map.
        drop_rate: Dropout before the classifier.
        act_layer: Activation.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_features, drop_rate, hidden_size=int(1.5 * in_features))
        self.conv = nn.Conv2d(in_features, self.hidden_size, 1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(self.hidden_size, **dd)
        self.act = act_layer()
        self.reset(num_classes, pool_type, in_features, **dd)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A map (b, h, w, in_features) to logits (b, num_classes), or (b, h, w, num_classes) without pooling.

        With `pre_logits`, to what the classifier sees.
        """
        if not self.pool_type and not self.num_classes:
            return x
        x = self.act(self.norm(self.conv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)
        x = self.drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)


class GrootV(HierarchicalModel):
    """GrootV (arXiv:2406.02395). The features of every stage are normalised; none is left to norm after the last.

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        mlp_ratio: Hidden width of the MLP over channels of the block.
        layer_scale: Initial value of a learned scale of each branch; None, as published, for no scale.
        norm_layer: Norm over channels, a name or a class; inside the mixers and in the head the norms are as published.
        norm_eps: Epsilon of `norm_layer`.
        **shared: Further arguments of `HierarchicalModel`; `global_pool` is "avg", "max", "avgmax" or "".
    """

    # there the skip weights D were vectors; A_log and dt_bias were not, and were decayed
    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^stem\.conv1\.weight$",
        tell_tale=(r"(^|\.)levels\.\d+\.blocks\.\d+\.TreeSSM\.",),
        names=(
            # norms there stand in a sequence with a permutation, whose place depends on the map's layout
            (r"\b(norm\d?)\.[01]\.", r"\1."),
            (r"^patch_embed\.", "stem."),
            # there a level ends with the downsampling, here the next stage begins with it
            (r"^levels\.(\d+)\.downsample\.", shifted("stages.{}.downsample.")),
            (r"^levels\.", "stages."),
            (r"\.TreeSSM\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.TreeSSM\.dt_projs_weight$", ".mixer.ssm.dt_weight"),
            (r"\.TreeSSM\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
            (r"\.TreeSSM\.A_logs$", ".mixer.ssm.A_log"),
            (r"\.TreeSSM\.Ds$", ".mixer.ssm.D"),
            (r"\.TreeSSM\.h_norm\.", ".mixer.ssm.h_norm."),
            (r"\.TreeSSM\.conv2d\.", ".mixer.conv."),
            (r"\.TreeSSM\.", ".mixer."),
            (r"\.gamma([12])$", r".scale\1.gamma"),
            (r"^conv_head\.0\.", "head.conv."),
            (r"^conv_head\.1\.0\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
    )

    def __init__(
        self,
        dims: int | Sequence[int] = 80,
        depths: Sequence[int] = (2, 2, 9, 2),
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        norm_layer: Any = "layernorm",
        norm_eps: float = 1e-6,
        **shared: Any,
    ):
        def block(place: Place, kit: Kit) -> ResidualBlock:
            dim, dd = place.dim, kit.dd
            return ResidualBlock(
                kit.norm_layer(dim, **dd),
                TreeMixer(dim, kit.proj_drop, **dd),
                kit.norm_layer(dim, **dd),
                Mlp(dim, int(mlp_ratio * dim), act_layer=kit.act_layer, drop=kit.proj_drop, **dd),
                place.drop_path,
                layer_scale=layer_scale,
                dim=dim,
                **dd,
            )

        super().__init__(
            dims,
            depths,
            stem=lambda in_chans, dim, kit: ConvStem(in_chans, dim, kit.act_layer, kit.norm_layer, **kit.dd),
            downsample=lambda dim, dim_out, kit: ConvDownsample(dim, dim_out, kit.norm_layer, bias=False, **kit.dd),
            block=block,
            stage_norm="all",
            norm=nn.Identity,
            head=lambda *args: GrootVHead(*args[:-1], act_layer=args[-1].act_layer, **args[-1].dd),
            norm_layer=norm_layer,
            norm_eps=norm_eps,
            **shared,
        )

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last one needed, and on request the head; returns the stages kept."""
        num_stages = len(self.stages)
        take_indices = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head or len(self.stages) < num_stages:
            self.head.conv = self.head.norm = nn.Identity()
        return take_indices


_cfg = family_cfg(
    license="mit",
    origin_url="https://github.com/EasonXiao-888/GrootVL",
    paper_name="GrootVL: Tree Topology is All You Need in State Space Model",
    paper_ids="arXiv:2406.02395",
    first_conv="stem.conv1",
    classifier="head.fc",
    pool_size=(7, 7),
)

default_cfgs = generate_default_cfgs(
    {
        "grootv_tiny.in1k": _cfg(),
        "grootv_small.in1k": _cfg(),
        "grootv_base.in1k": _cfg(),
        "test_grootv.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def grootv_tiny(pretrained: bool = False, **kwargs: Any) -> GrootV:
    """GrootV-T."""
    return build_model(GrootV, "grootv_tiny", pretrained, kwargs, dims=80, depths=(2, 2, 9, 2))


@register_model
def grootv_small(pretrained: bool = False, **kwargs: Any) -> GrootV:
    """GrootV-S."""
    return build_model(GrootV, "grootv_small", pretrained, kwargs, dims=96, depths=(2, 2, 13, 2))


@register_model
def grootv_base(pretrained: bool = False, **kwargs: Any) -> GrootV:
    """GrootV-B."""
    return build_model(GrootV, "grootv_base", pretrained, kwargs, dims=128, depths=(2, 2, 13, 2))


@register_model
def test_grootv(pretrained: bool = False, **kwargs: Any) -> GrootV:
    """A pico variant for tests and demonstrations; there are no weights."""
    return build_model(GrootV, "test_grootv", pretrained, kwargs, dims=(20, 32, 48, 64), depths=(1, 1, 2, 1))
