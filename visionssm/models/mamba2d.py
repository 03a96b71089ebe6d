"""Mamba2D: a hierarchical model whose states are fed from above and from the left at once, with attention at the end.

Paper: Mamba2D: A Natively Multi-Dimensional State-Space Model for Vision Tasks, https://arxiv.org/abs/2412.16146
Original code and weights: https://github.com/cocoalex00/Mamba2D (no licence is stated)

There is no scan order: the recurrence itself is two-dimensional. The last two stages are attention. Two releases were
published; the second has one projection B per direction, reads every other map from its far corner, rotates queries and
keys, and ends each stage with a norm. Maps are (batch, height, width, channels) from stem to head; any input size of at
least 3 x 3 works.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm, Mlp, apply_rot_embed, build_rotary_pos_embed
from timm.models import generate_default_cfgs, metaformer, register_model
from torch import Tensor, nn

from .._timm_compat import register_notrace_function
from ..checkpoints import Layout
from ..layers import MapHead, init_a_log_, init_dt_bias_, init_dt_weight_, state_dtype
from ..ops import wavefront_scan
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["Mamba2D"]

_HEAD_DIM = 32


class Mamba2DStem(nn.Module):
    """7 x 7 convolution of stride 4, then a norm.

    Args:
        in_chans: Channels of the image.
        dim: Channels out.
        norm_layer: Norm after the convolution.
    """

    def __init__(self, in_chans: int, dim: int, norm_layer: type[nn.Module] = LayerNorm, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv = nn.Conv2d(in_chans, dim, 7, stride=4, padding=2, **dd)
        self.norm = norm_layer(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, (h + 1) // 4, (w + 1) // 4, dim)."""
        return self.norm(self.conv(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Mamba2DDownsample(nn.Module):
    """Perhaps a norm, then a 3 x 3 convolution of stride 2; odd sizes round up.

    Args:
        dim: Channels in.
        dim_out: Channels out.
        norm: Norm before the convolution, or None.
    """

    def __init__(self, dim: int, dim_out: int, norm: nn.Module | None = None, device=None, dtype=None):
        super().__init__()
        self.norm = nn.Identity() if norm is None else norm
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to (b, ceil(h / 2), ceil(w / 2), dim_out)."""
        return self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class StarReLU(metaformer.StarReLU):
    """scale * relu(x)**2 + bias, with two learned numbers (MetaFormer baselines, arXiv:2210.13452)."""

    def reset_parameters(self) -> None:
        """Initialise to the square of the rectified input."""
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.bias)


class LocalBranch(nn.Module):
    """Norm, projection to twice the channels, 3 x 3 depthwise convolution, projection back.

    Args:
        dim: Channels of the map.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = LayerNorm(dim, eps=1e-5, **dd)
        self.fc1 = nn.Linear(dim, 2 * dim, bias=False, **dd)
        self.act1 = StarReLU(**dd)
        self.conv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1, groups=2 * dim, bias=False, **dd)
        self.act2 = StarReLU(**dd)
        self.fc2 = nn.Linear(2 * dim, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to the same shape."""
        x = self.act1(self.fc1(self.norm(x))).permute(0, 3, 1, 2)
        return self.fc2(self.act2(self.conv(x)).permute(0, 2, 3, 1))


class WavefrontMixer(nn.Module):
    """Two-dimensional selective recurrence between two projections, beside a convolutional branch.

    Args:
        dim: Channels of the map.
        dim_inner: Channels of the recurrence.
        d_state: States per channel.
        dt_rank: Rank of the step sizes' projections.
        local: Add the convolutional branch.
        flip: Start at the bottom right, not at the top left.
        shared_B: Both directions share one input projection, and the projections have a bias (the first release).
    """

    def __init__(
        self,
        dim: int,
        dim_inner: int,
        d_state: int,
        dt_rank: int,
        local: bool = True,
        flip: bool = False,
        shared_B: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.flip = flip
        self.shared_B = shared_B
        self.splits = (dt_rank, dt_rank, *(d_state,) * (2 if shared_B else 3))
        self.local = LocalBranch(dim, **dd) if local else None
        self.in_proj = nn.Linear(dim, dim_inner, **dd)
        self.act = nn.GELU()
        self.x_proj = nn.Linear(dim_inner, sum(self.splits), bias=shared_B, **dd)
        self.dt_proj_top = nn.Linear(dt_rank, dim_inner, **dd)
        self.dt_proj_left = nn.Linear(dt_rank, dim_inner, **dd)
        self.A_log_top = nn.Parameter(torch.empty(dim_inner, d_state, **dd))
        self.A_log_left = nn.Parameter(torch.empty(dim_inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(dim_inner, **dd))
        self.out_proj = nn.Linear(dim_inner, dim, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as Mamba does; both directions begin with the same step sizes."""
        for dt_proj in (self.dt_proj_top, self.dt_proj_left):
            init_dt_weight_(dt_proj.weight)
        with torch.no_grad():
            self.dt_proj_left.bias.copy_(init_dt_bias_(self.dt_proj_top.bias))
        init_a_log_(self.A_log_top)
        init_a_log_(self.A_log_left)
        nn.init.ones_(self.D)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns the same shape."""
        local = 0 if self.local is None else self.local(x)
        u = self.act(self.in_proj(x.flip((1, 2)) if self.flip else x))
        parts = self.x_proj(u).split(self.splits, dim=-1)  # step sizes, one or two B, C
        y = wavefront_scan(
            u,
            F.softplus(self.dt_proj_top(parts[0])),
            F.softplus(self.dt_proj_left(parts[1])),
            -torch.exp(state_dtype(self.A_log_top)),
            -torch.exp(state_dtype(self.A_log_left)),
            parts[2],
            parts[-2],  # the same where there is one
            parts[-1],
            state_dtype(self.D),
        )
        y = self.out_proj(self.act(y))
        return (y.flip((1, 2)) if self.flip else y) + local


@register_notrace_function  # fx cannot follow the loops over sizes
def rotation(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Sines and cosines (h * w, 32) of RoFormer (arXiv:2104.09864): one half by rows, the other by columns."""
    sin, cos = build_rotary_pos_embed([height, width], dim=_HEAD_DIM, in_pixels=False, device=like.device)
    return sin.to(like.dtype), cos.to(like.dtype)


class MapAttention(nn.Module):
    """Attention between all pixels, with heads of 32 channels.

    Args:
        dim: Channels of the map; as many heads as fit into them, at least one.
        rotary: Rotate queries and keys by the pixels' positions, then normalise them.
    """

    def __init__(self, dim: int, rotary: bool = True, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.rotary = rotary
        self.heads = max(1, dim // _HEAD_DIM)
        width = self.heads * _HEAD_DIM
        self.qkv = nn.Linear(dim, 3 * width, bias=False, **dd)
        self.q_norm = LayerNorm(_HEAD_DIM, eps=1e-5, **dd) if rotary else nn.Identity()
        self.k_norm = LayerNorm(_HEAD_DIM, eps=1e-5, **dd) if rotary else nn.Identity()
        self.proj = nn.Linear(width, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns the same shape."""
        height, width = x.shape[1], x.shape[2]
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.heads, _HEAD_DIM)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.rotary:
            sin, cos = rotation(height, width, q)
            q, k = apply_rot_embed(q, sin, cos), apply_rot_embed(k, sin, cos)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).flatten(2).unflatten(1, (height, width)))


class ScaledBlock(nn.Module):
    """skip1 * x + mixer(norm1(x)), then skip2 * x + mlp(norm2(x)): the shortcuts are scaled, not the branches.

    Args:
        dim: Channels of the map.
        norm1: Norm of the mixer's input.
        mixer: Keeps the shape of a map.
        norm2: Norm of the MLP's input.
        mlp: Keeps the shape of a map.
        drop_path: Rate of stochastic depth, of each branch.
        scaled: Have the scales (dim) of the shortcuts.
    """

    def __init__(
        self,
        dim: int,
        norm1: nn.Module,
        mixer: nn.Module,
        norm2: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        scaled: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.scaled = scaled
        self.norm1 = norm1
        self.mixer = mixer
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm2
        self.mlp = mlp
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        if scaled:
            self.skip1 = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
            self.skip2 = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise to plain shortcuts."""
        if self.scaled:
            nn.init.ones_(self.skip1)
            nn.init.ones_(self.skip2)

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same shape."""
        x = (self.skip1 * x if self.scaled else x) + self.drop_path1(self.mixer(self.norm1(x)))
        return (self.skip2 * x if self.scaled else x) + self.drop_path2(self.mlp(self.norm2(x)))


class Mamba2DHead(MapHead):
    """Mean over the map, norm, hidden layer with a norm after it, classifier.

    Args:
        in_features: Channels of the map; four times as many before the classifier.
        num_classes: Classes; 0 for no classifier.
        pool_type: "avg"; or "" for a classifier at every position, and with no classifier for nothing but the map.
        drop_rate: Dropout before the classifier.
        act_layer: Activation.
        norm_layer: Norm over channels.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(in_features, drop_rate, hidden_size=4 * in_features)
        self.norm1 = norm_layer(in_features, **dd)
        self.fc1 = nn.Linear(in_features, self.hidden_size, **dd)
        self.act = act_layer()
        self.norm2 = norm_layer(self.hidden_size, **dd)
        self.reset(num_classes, pool_type, in_features, **dd)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A map (b, h, w, in_features) to logits (b, num_classes), or (b, h, w, num_classes) without pooling.

        With `pre_logits`, to what the classifier sees.
        """
        if not self.pool_type and not self.num_classes:
            return x
        x = self.norm1(self.global_pool(x))
        x = self.drop(self.norm2(self.act(self.fc1(x))))
        return x if pre_logits else self.fc(x)


_MIXERS = ("wavefront", "wavefront_local", "attention")


class Mamba2D(HierarchicalModel):
    """Mamba2D (arXiv:2412.16146). The features of every stage are normalised in the second release, none in the first.

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        mixers: Mixer of each stage: "wavefront_local", "wavefront" without convolutional branch, or "attention".
        scaled: For each stage, whether the blocks' shortcuts have learned scales; None for all (second release) or the
            last two stages (first).
        flip: Let the second, fourth, ... recurrence of a stage start at the bottom right; None for yes in the second
            release only.
        d_state: States per channel of the recurrence.
        release: 2; or 1 for a recurrence of twice the width with one input projection, plain attention, norms before
            downsampling and none after the stages.
        **shared: Arguments of `HierarchicalModel`; `global_pool` is "avg", "max", "avgmax" or "".

    Raises:
        ValueError: an argument is out of its range, or two do not fit each other.
    """

    undecayed = (".A_log_top", ".A_log_left")
    linear_std = None
    layout = Layout(
        own=r"^stem\.conv\.weight$",
        tell_tale=(r"(^|\.)ds\.stem\.conv\.weight$", r"(^|\.)stages\.\d+\.\d+\.token_mixer\.AT_log$"),
        names=(
            (r"(^|\.)_orig_mod\.", r"\1"),
            (r"^backbone\.", ""),
            (r"^ds\.stem\.conv\.", "stem.conv."),
            (r"^ds\.stem\.post_norm\.norm\.", "stem.norm."),
            (r"^ds\.ds(\d+)\.pre_norm\.norm\.", r"stages.\1.downsample.norm."),
            (r"^ds\.ds(\d+)\.conv\.", r"stages.\1.downsample.conv."),
            # the last entry of a stage is its norm
            (r"^stages\.(\d+)\.\d+\.(weight|bias)$", r"stages.\1.norm.\2"),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.res_scale([12])\.scale$", r".skip\1"),
            (r"\.MLP\.", ".mlp."),
            (r"\.token_mixer\.", ".mixer."),
            (r"\.mixer\.A([TL])_log$", lambda match: f".mixer.A_log_{_DIRECTIONS[match[1]]}"),
            (r"\.mixer\.dt_proj([TL])\.", lambda match: f".mixer.dt_proj_{_DIRECTIONS[match[1]]}."),
            (r"\.mixer\.local_norm\.", ".mixer.local.norm."),
            (r"\.mixer\.local_path\.pwconv([12])\.", r".mixer.local.fc\1."),
            (r"\.mixer\.local_path\.dwconv\.", ".mixer.local.conv."),
            (r"\.mixer\.local_path\.", ".mixer.local."),
            (r"^head\.norm\.", "head.norm2."),
            (r"^head\.fc2\.", "head.fc."),
            (r"^norm\.", "head.norm1."),
        ),
    )

    def __init__(
        self,
        dims: int | Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 3, 9, 3),
        mixers: Sequence[str] = ("wavefront_local", "wavefront_local", "attention", "attention"),
        scaled: Sequence[bool] | None = None,
        flip: bool | None = None,
        d_state: int = 16,
        release: int = 2,
        **shared: Any,
    ):
        if release not in (1, 2):
            raise ValueError(f"release must be 1 or 2, got {release!r}")
        if unknown := set(mixers) - set(_MIXERS):
            raise ValueError(f"mixers must be of {', '.join(_MIXERS)}, got {', '.join(map(repr, sorted(unknown)))}")
        first = release == 1
        flip = not first if flip is None else flip
        scaled = [not first or stage >= 2 for stage in range(len(depths))] if scaled is None else scaled
        if not len(mixers) == len(scaled) == len(depths):
            raise ValueError(
                f"mixers, scaled and depths must be of one length, got {len(mixers)}, {len(scaled)} and {len(depths)}"
            )

        def block(place: Place, kit: Kit) -> ScaledBlock:
            dim, dd, kind = place.dim, kit.dd, mixers[place.stage]
            mixer: nn.Module
            if kind == "attention":
                mixer = MapAttention(dim, rotary=not first, **dd)
            else:
                odd = (place.index - sum(depths[: place.stage])) % 2 == 1
                mixer = WavefrontMixer(
                    dim,
                    2 * dim if first else dim,
                    d_state,
                    math.ceil(dim / 16),
                    local=kind == "wavefront_local",
                    flip=flip and odd,
                    shared_B=first,
                    **dd,
                )
            return ScaledBlock(
                dim,
                kit.norm_layer(dim, **dd),
                mixer,
                kit.norm_layer(dim, **dd),
                Mlp(dim, 4 * dim, act_layer=kit.act_layer, drop=kit.proj_drop, **dd),
                place.drop_path,
                scaled[place.stage],
                **dd,
            )

        def downsample(dim: int, dim_out: int, kit: Kit) -> Mamba2DDownsample:
            return Mamba2DDownsample(dim, dim_out, kit.norm_layer(dim, **kit.dd) if first else None, **kit.dd)

        def head(dim: int, num_classes: int, global_pool: str, drop_rate: float, kit: Kit) -> Mamba2DHead:
            return Mamba2DHead(dim, num_classes, global_pool, drop_rate, kit.act_layer, kit.norm_layer, **kit.dd)

        super().__init__(
            dims,
            depths,
            stem=lambda in_chans, dim, kit: Mamba2DStem(in_chans, dim, kit.norm_layer, **kit.dd),
            downsample=downsample,
            block=block,
            stage_norm=False if first else "all",
            norm=nn.Identity,
            head=head,
            **shared,
        )
        self.release = release

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The decay rates; the first release decayed every parameter."""
        return set() if self.release == 1 else super().no_weight_decay()

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
            self.head.norm1 = self.head.fc1 = self.head.norm2 = nn.Identity()
        return take_indices


_DIRECTIONS = {"T": "top", "L": "left"}

_cfg = family_cfg(
    license="unknown",
    origin_url="https://github.com/cocoalex00/Mamba2D",
    paper_name="Mamba2D: A Natively Multi-Dimensional State-Space Model for Vision Tasks",
    paper_ids="arXiv:2412.16146",
    first_conv="stem.conv",
    classifier="head.fc",
    crop_pct=1.0,
    pool_size=(7, 7),
)
_RELEASES = "https://github.com/cocoalex00/Mamba2D/releases/download/v2.0.0/"

default_cfgs = generate_default_cfgs(
    {
        "mamba2d_nano.in1k": _cfg(url=_RELEASES + "M2D-N-backbone.ckpt"),
        "mamba2d_tiny.in1k": _cfg(url=_RELEASES + "M2D-T-backbone.ckpt"),
        "mamba2d_small.in1k": _cfg(url=_RELEASES + "M2D-S-backbone.ckpt"),
        "mamba2d_tiny_v1.in1k": _cfg(),
        "test_mamba2d.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def mamba2d_nano(pretrained: bool = False, **kwargs: Any) -> Mamba2D:
    """M2D-N."""
    return build_model(Mamba2D, "mamba2d_nano", pretrained, kwargs, dims=(32, 64, 160, 256), depths=(3, 3, 9, 3))


@register_model
def mamba2d_tiny(pretrained: bool = False, **kwargs: Any) -> Mamba2D:
    """M2D-T."""
    return build_model(Mamba2D, "mamba2d_tiny", pretrained, kwargs, dims=(64, 128, 320, 512), depths=(3, 3, 9, 3))


@register_model
def mamba2d_small(pretrained: bool = False, **kwargs: Any) -> Mamba2D:
    """M2D-S."""
    return build_model(Mamba2D, "mamba2d_small", pretrained, kwargs, dims=(96, 192, 384, 576), depths=(3, 12, 14, 3))


@register_model
def mamba2d_tiny_v1(pretrained: bool = False, **kwargs: Any) -> Mamba2D:
    """M2D-T of the first release."""
    return build_model(
        Mamba2D, "mamba2d_tiny_v1", pretrained, kwargs, dims=(64, 128, 320, 512), depths=(3, 3, 9, 3), release=1
    )


@register_model
def test_mamba2d(pretrained: bool = False, **kwargs: Any) -> Mamba2D:
    """A pico variant for tests and demonstrations; there are no weights."""
    return build_model(
        Mamba2D, "test_mamba2d", pretrained, kwargs, dims=(20, 32, 48, 64), depths=(2, 1, 2, 1), d_state=4
    )
