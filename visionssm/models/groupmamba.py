"""GroupMamba: a hierarchical model whose mixer scans four groups of channels along one route each.

Paper: GroupMamba: Efficient Group-Based Visual State Space Model, https://arxiv.org/abs/2407.13772
Original code and weights: https://github.com/amshaker/GroupMamba (MIT)

The mixer's output multiplies its normalised input, which the same norm normalises again. The pooled map passes one more
block before two classifiers, the second of which was trained by distillation. Maps are (batch, height, width, channels)
from stem to head; any input size works.
"""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    ConvNormAct,
    DropPath,
    LayerNorm,
    Mlp,
    calculate_drop_path_rates,
    get_act_layer,
    get_norm_layer,
)
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import check_state_dict, unwrap
from ..layers import ConvDownsample, GroupSS2D, Stage
from ..scans import num_routes
from ._builder import build_model
from ._hierarchical import HierarchicalModel

__all__ = ["GroupMamba"]

_GROUPS = 4
_MAP_NORM = partial(LayerNorm, eps=1e-5)  # after every strided convolution and in every mixer, whatever norm_layer is


class GroupMambaStem(nn.Module):
    """Three convolutions at half resolution, then one of stride 2 and a norm.

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
        self.down = ConvDownsample(dim_hidden, dim, norm_layer=_MAP_NORM, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, ceil(h / 4), ceil(w / 4), dim)."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self.down(self.conv3(self.conv2(self.conv1(x))).permute(0, 2, 3, 1))


class ModulatedGroupMixer(nn.Module):
    """Group scan, gated by its normalised input and by channel affinities, normalised and projected.

    The norm before and the norm after the gating share their weights.

    Args:
        dim: Channels of the map.
        scan: Name of a scan order of four routes.
        proj_drop: Dropout after the projection.
    """

    def __init__(self, dim: int, scan: str, proj_drop: float = 0.0, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = _MAP_NORM(dim, **dd)
        self.affinity = Mlp(dim, dim // 16, dim, act_layer=nn.ReLU, **dd)
        self.groups = GroupSS2D(dim, scan=scan, **dd)
        self.skip_scale = nn.Parameter(torch.empty(1, **dd))
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the module's own parameter."""
        nn.init.ones_(self.skip_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns the same shape."""
        x = self.norm(x)
        gate = self.skip_scale * self.affinity(x.mean((1, 2), keepdim=True)).sigmoid()
        mixed = self.groups(x)
        # the contiguous factor comes first: it decides how the product lies in memory
        x = (x * gate).unflatten(-1, mixed.shape[-2:]) * mixed
        return self.proj_drop(self.proj(self.norm(x.flatten(-2))))


class ConvMlp(nn.Module):
    """MLP with a 3 x 3 depthwise convolution before the activation.

    Args:
        dim: Channels in and out.
        dim_hidden: Channels between.
        act_layer: Activation.
        drop: Dropout after each projection.
    """

    def __init__(
        self,
        dim: int,
        dim_hidden: int,
        act_layer: type[nn.Module] = nn.GELU,
        drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.fc1 = nn.Linear(dim, dim_hidden, **dd)
        self.conv = nn.Conv2d(dim_hidden, dim_hidden, 3, padding=1, groups=dim_hidden, **dd)
        self.act = act_layer()
        self.fc2 = nn.Linear(dim_hidden, dim, **dd)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to the same shape."""
        x = self.act(self.conv(self.fc1(x).permute(0, 3, 1, 2)))
        return self.drop(self.fc2(self.drop(x).permute(0, 2, 3, 1)))


class GroupMambaBlock(nn.Module):
    """Residual mixer, which has a norm of its own, and residual MLP."""

    def __init__(
        self,
        dim: int,
        mlp_ratio: float,
        scan: str,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.mixer = ModulatedGroupMixer(dim, scan, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = ConvMlp(dim, int(mlp_ratio * dim), act_layer=act_layer, drop=proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.mixer(x))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class GroupMambaStage(Stage):
    """Downsampling, except in the first stage, blocks, and a norm, except in the last."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module):
        super().__init__(downsample, blocks)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class ClassBlock(nn.Module):
    """A block for the pooled map (b, 1, 1, dim); the mixer is normalised after it, and the MLP has no convolution."""

    def __init__(
        self,
        dim: int,
        scan: str,
        mlp_ratio: float = 4.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.mixer = ModulatedGroupMixer(dim, scan, **dd)
        self.norm1 = norm_layer(dim, **dd)
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), act_layer=act_layer, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm1(self.mixer(x))
        return x + self.mlp(self.norm2(x))


class GroupMambaHead(nn.Module):
    """Mean over the map, class block, norm, and one or two classifiers.

    Args:
        block: The class block.
        norm: Norm after it.
        num_classes: Classes; 0 for no classifier.
        pool_type: "avg"; or "" for classifiers at every position of the map, without class block and norm.
        drop_rate: Dropout before the classifiers.
        distilled: Have a second classifier, to be trained by distillation.
    """

    fc: nn.Module
    fc_dist: nn.Module

    def __init__(
        self,
        block: nn.Module,
        norm: nn.Module,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        distilled: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.distilled = distilled
        self.distilled_training = False
        self.block = block
        self.norm = norm
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type, in_features, device=device, dtype=dtype)

    def reset(self, num_classes: int, pool_type: str | None, in_features: int, device=None, dtype=None) -> None:
        """Replace the classifiers, and the pooling unless it is None."""
        if pool_type not in (None, "avg", ""):
            raise ValueError(f"global_pool must be 'avg' or '', got {pool_type!r}")
        if pool_type is not None:
            self.pool_type = pool_type
        for name in ("fc", "fc_dist") if self.distilled else ("fc",):
            fc = nn.Linear(in_features, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
            setattr(self, name, fc.train(self.training))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """A map (b, h, w, in_features) to logits (b, num_classes), the mean of both classifiers.

        In distilled training, the logits of each; with `pre_logits`, what the classifiers see (b, in_features).
        """
        if self.pool_type:
            x = self.norm(self.block(x.mean((1, 2), keepdim=True))).flatten(1)
        x = self.drop(x)
        if pre_logits:
            return x
        if not self.distilled:
            return self.fc(x)
        logits, logits_dist = self.fc(x), self.fc_dist(x)
        if self.training and self.distilled_training:
            return logits, logits_dist
        return (logits + logits_dist) / 2


class GroupMamba(HierarchicalModel):
    """GroupMamba (arXiv:2407.13772).

    The features of the first three stages are normalised, as the next stage reads them. Those of the last one are not,
    with `norm` neither: the norm that was trained there belongs to the class token.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: "avg"; or "" to apply the classifiers at every position, without class block.
        dims: Channels of each stage, multiples of 4.
        depths: Blocks of each stage.
        mlp_ratios: Hidden width of the MLPs over channels, for each stage.
        stem_dim: Channels inside the stem.
        distilled: Have a second classifier, to be trained by distillation.
        scan: Name of a scan order of four routes, see `visionssm.scans`; each scans a quarter of the channels.
        drop_rate: Dropout before the classifiers.
        proj_drop_rate: Dropout after the projections of mixer and MLP.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        act_layer: Activation of the MLPs, a name or a class.
        norm_layer: Norm over channels, a name or a class; mixer, stem and downsampling keep to layer norm.
        norm_eps: Epsilon of `norm_layer`.
        weight_init: "" as published, or "skip".

    Raises:
        ValueError: the scan order has another number of routes, or an argument does not fit another one.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: Sequence[int] = (64, 128, 348, 448),
        depths: Sequence[int] = (3, 4, 9, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        stem_dim: int = 32,
        distilled: bool = True,
        scan: str = "cross",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | type[nn.Module] = "gelu",
        norm_layer: str | type[nn.Module] = "layernorm",
        norm_eps: float = 1e-6,
        weight_init: str = "",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if num_routes(scan) != _GROUPS:
            raise ValueError(
                f"GroupMamba scans {_GROUPS} groups of channels along one route each, but scan={scan!r} "
                f"has {num_routes(scan)} routes"
            )
        if not len(dims) == len(depths) == len(mlp_ratios):
            raise ValueError(
                "dims, depths and mlp_ratios must be of one length, got "
                f"{len(dims)}, {len(depths)} and {len(mlp_ratios)}"
            )
        if weight_init not in ("", "skip"):
            raise ValueError(f"weight_init must be '' or 'skip', got {weight_init!r}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.scan = scan
        self.output_fmt = "NHWC"
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = []
        act_layer = get_act_layer(act_layer)
        norm_layer = partial(get_norm_layer(norm_layer), eps=norm_eps)

        self.stem = GroupMambaStem(in_chans, stem_dim, dims[0], **dd)
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (dim, depth, mlp_ratio) in enumerate(zip(dims, depths, mlp_ratios, strict=True)):
            stages.append(
                GroupMambaStage(
                    ConvDownsample(dims[i - 1], dim, norm_layer=_MAP_NORM, **dd) if i > 0 else nn.Identity(),
                    [
                        GroupMambaBlock(
                            dim,
                            mlp_ratio,
                            scan,
                            drop_path=drop_path_rates[i][j],
                            proj_drop=proj_drop_rate,
                            act_layer=act_layer,
                            norm_layer=norm_layer,
                            **dd,
                        )
                        for j in range(depth)
                    ],
                    norm_layer(dim, **dd) if i < len(dims) - 1 else nn.Identity(),
                )
            )
            self.feature_info.append(dict(num_chs=dim, reduction=4 * 2**i, module=f"stages.{i}"))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.Identity()  # the one that was trained normalises the class token
        self.head = GroupMambaHead(
            ClassBlock(self.num_features, scan, act_layer=act_layer, norm_layer=norm_layer, **dd),
            norm_layer(self.num_features, **dd),
            self.num_features,
            num_classes,
            pool_type=global_pool,
            drop_rate=drop_rate,
            distilled=distilled,
            **dd,
        )
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as the original does; `needs_reset` also resets what initialised itself at construction."""
        super().init_weights(mode, needs_reset)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the original training did not decay beyond biases and vectors.

        There the skip weights D and the norms of the groups were vectors. A_log, dt_bias and dt_weight were marked but
        decayed all the same.
        """
        spared = (".ssm.D", ".out_norm.weight", ".out_norm.bias")
        return {name for name, _ in self.named_parameters() if name.endswith(spared)}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names per layer, for layer-wise learning rates."""
        groups = super().group_matcher(coarse)
        if not coarse:
            groups["blocks"].append((r"^stages\.(\d+)\.norm", (99999,)))
        return groups

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """The last layer, or both of them."""
        return (self.head.fc, self.head.fc_dist) if self.head.distilled else self.head.fc

    @torch.jit.ignore
    def set_distilled_training(self, enable: bool = True) -> None:
        """Have the forward in training mode return the logits of both classifiers.

        Raises:
            ValueError: the model has one classifier.
        """
        if enable and not self.head.distilled:
            raise ValueError("distilled training needs two classifiers; create the model with distilled=True")
        self.head.distilled_training = enable

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
            self.head.block = nn.Identity()
            self.head.norm = nn.Identity()
        return take_indices


_NAMES = (
    (r"^patch_embed1\.conv\.0\.", "stem.conv1.conv."),
    (r"^patch_embed1\.conv\.1\.", "stem.conv1.bn."),
    (r"^patch_embed1\.conv\.3\.", "stem.conv2.conv."),
    (r"^patch_embed1\.conv\.4\.", "stem.conv2.bn."),
    (r"^patch_embed1\.conv\.6\.", "stem.conv3.conv."),
    (r"^patch_embed1\.conv\.7\.", "stem.conv3.bn."),
    (r"^patch_embed1\.proj\.", "stem.down.conv."),
    (r"^patch_embed1\.norm\.", "stem.down.norm."),
    (r"^patch_embed(\d+)\.proj\.", r"stages.\1.downsample.conv."),
    (r"^patch_embed(\d+)\.norm\.", r"stages.\1.downsample.norm."),
    (r"^block(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^post_network\.0\.", "head.block."),
    (r"^norm4\.", "head.norm."),
    (r"^norm(\d+)\.", r"stages.\1.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^dist_head\.", "head.fc_dist."),
    (r"\.mlp\.dwconv\.dwconv\.", ".mlp.conv."),
    (r"\.attn\.(fc[12])\.", r".mixer.affinity.\1."),
    (r"\.attn\.", ".mixer."),
)
_GROUP_NAMES = {
    "x_proj_weight": "ssm.x_proj_weight",
    "dt_projs_weight": "ssm.dt_weight",
    "dt_projs_bias": "ssm.dt_bias",
    "A_logs": "ssm.A_log",
    "Ds": "ssm.D",
    "conv2d.weight": "conv.weight",
    "conv2d.bias": "conv.bias",
}
# these have a leading axis in the files; the others get one
_CONCATENATED = ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "conv2d.weight", "conv2d.bias")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: GroupMamba) -> dict[str, Tensor]:
    """Convert a published checkpoint to the names of `GroupMamba`, the weights of the groups stacked.

    A state dict of ours passes unchanged.

    Raises:
        CheckpointError: the weights do not fill the model exactly.
    """
    source = unwrap(state_dict)
    out = source if "stem.down.conv.weight" in source else convert_names(source)
    check_state_dict(out, model, source)
    return out


def convert_names(source: dict[str, Any]) -> dict[str, Tensor]:
    """Published names to ours, of a whole model or of a part; stacks the weights of the groups."""
    out = {}
    groups: dict[tuple[str, str], dict[int, Tensor]] = {}  # (prefix, kind) -> weights by group
    for name, value in source.items():
        new = _convert_name(name)
        group = re.fullmatch(r"(.*\.mixer\.)mamba_g([1-4])\.(.*)", new)
        if group:
            groups.setdefault((group[1], group[3]), {})[int(group[2])] = value
        else:
            out[new] = value
    for (prefix, kind), values in groups.items():
        if len(values) == _GROUPS:
            merge = torch.cat if kind in _CONCATENATED else torch.stack
            out[f"{prefix}groups.{_GROUP_NAMES.get(kind, kind)}"] = merge([values[g + 1] for g in range(_GROUPS)])
        else:  # leave it to the check of names to say which are missing
            out.update({f"{prefix}mamba_g{g}.{kind}": value for g, value in values.items()})
    return out


def _convert_name(name: str) -> str:
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    # stages count from 1 there
    return re.sub(r"^stages\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.", name)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1.conv",
        "classifier": ("head.fc", "head.fc_dist"),
        "license": "mit",
        "origin_url": "https://github.com/amshaker/GroupMamba",
        "paper_name": "GroupMamba: Efficient Group-Based Visual State Space Model",
        "paper_ids": "arXiv:2407.13772",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "groupmamba_tiny.in1k": _cfg(),
        "groupmamba_small.in1k": _cfg(),
        "groupmamba_base.in1k": _cfg(),
        "test_groupmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create_groupmamba(variant: str, pretrained: bool, **kwargs: Any) -> GroupMamba:
    return build_model(GroupMamba, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def groupmamba_tiny(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-T."""
    args = dict(dims=(64, 128, 348, 448), depths=(3, 4, 9, 3), stem_dim=32)
    return _create_groupmamba("groupmamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def groupmamba_small(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-S."""
    args = dict(dims=(64, 128, 348, 512), depths=(3, 4, 16, 3), stem_dim=64)
    return _create_groupmamba("groupmamba_small", pretrained, **dict(args, **kwargs))


@register_model
def groupmamba_base(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-B."""
    args = dict(dims=(96, 192, 424, 512), depths=(3, 6, 21, 3), stem_dim=64)
    return _create_groupmamba("groupmamba_base", pretrained, **dict(args, **kwargs))


@register_model
def test_groupmamba(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(20, 32, 48, 64), depths=(1, 1, 2, 1), stem_dim=8)
    return _create_groupmamba("test_groupmamba", pretrained, **dict(args, **kwargs))
