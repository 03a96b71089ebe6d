"""GroupMamba: a hierarchical model whose mixer scans four groups of channels along one route each.

Paper: GroupMamba: Efficient Group-Based Visual State Space Model, https://arxiv.org/abs/2407.13772
Original code and weights: https://github.com/amshaker/GroupMamba (MIT)

The mixer's output multiplies its normalised input, which the same norm normalises again. The pooled map passes one more
block before two classifiers, the second of which was trained by distillation. Maps are (batch, height, width, channels)
from stem to head; any input size works.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout, shifted
from ..layers import ConvDownsample, DeepConvStem, DwConvMlp, MapHead, ResidualBlock, SelectiveSSM
from ..scans import num_routes, scan_table
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["GroupMamba"]

_GROUPS = 4
_MAP_NORM = partial(LayerNorm, eps=1e-5)  # after every strided convolution and in every mixer, whatever norm_layer is


class GroupedLinear(nn.Module):
    """One linear map per group of channels, without bias.

    Args:
        groups: Number of groups k.
        dim: Channels of a group.
        dim_out: Channels of a group after the map.
    """

    def __init__(self, groups: int, dim: int, dim_out: int, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, dim_out, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as GroupMamba does its linear layers."""
        trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(..., k, dim) to (..., k, dim_out)."""
        return torch.einsum("...kd,kod->...ko", x, self.weight)


class GroupedLayerNorm(nn.Module):
    """Layer norm of each group of channels, with weights of its own.

    Args:
        groups: Number of groups k.
        dim: Channels of a group.
        eps: Added to the variance.
    """

    def __init__(self, groups: int, dim: int, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(groups, dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(groups, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise to the plain norm."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., k, dim) along its last axis."""
        return torch.addcmul(self.bias, F.layer_norm(x, self.weight.shape[1:], eps=self.eps), self.weight)


class GroupSS2D(nn.Module):
    """Gated scan mixer over groups of channels; each group is scanned along one route.

    Args:
        dim: Channels of the map, a multiple of the number of routes.
        d_state: States per channel.
        scan: Name of the scan order; it has as many routes as there are groups.
    """

    def __init__(self, dim: int, d_state: int = 1, scan: str = "cross", device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        groups = num_routes(scan)
        if dim % groups:
            raise ValueError(f"{dim} channels cannot be split into {groups} groups, one for each route of {scan!r}")
        dim_group = dim // groups
        self.groups = groups
        self.scan = scan
        self.in_proj = GroupedLinear(groups, dim_group, 2 * dim_group, **dd)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, **dd)
        self.act = nn.SiLU()
        self.ssm = SelectiveSSM(dim_group, groups, d_state, dt_rank=-(-dim_group // 16), shared_input=False, **dd)
        self.out_norm = GroupedLayerNorm(groups, dim_group, **dd)
        self.out_proj = GroupedLinear(groups, dim_group, dim_group, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns (b, h, w, groups, dim / groups)."""
        height, width = x.shape[1], x.shape[2]
        x, z = self.in_proj(x.unflatten(-1, (self.groups, -1))).chunk(2, dim=-1)
        x = self.act(self.conv(x.flatten(3).permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        u = x.flatten(1, 2).unflatten(-1, (self.groups, -1))
        y = self.ssm(u, scan_table(self.scan, height, width, x.device), out="route")
        y = self.out_norm(y).unflatten(1, (height, width))
        gate = self.act(z.flatten(3))  # contiguous: the rows of a group are too short to be worked on one by one
        return self.out_proj(y * gate.unflatten(-1, (self.groups, -1)))


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


class GroupMambaHead(MapHead):
    """Pooled map, class block, norm, and one or two classifiers.

    Args:
        block: The class block.
        norm: Norm after it.
        num_classes: Classes; 0 for no classifier.
        pool_type: "avg", "max" or "avgmax"; or "" for classifiers at every position of the map, without class block and
            norm.
        drop_rate: Dropout before the classifiers.
        distilled: Have a second classifier, to be trained by distillation.
    """

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
        classifiers = ("fc", "fc_dist") if distilled else ("fc",)
        super().__init__(in_features, drop_rate, flatten=False, classifiers=classifiers)
        self.distilled = distilled
        self.distilled_training = False
        self.block = block
        self.norm = norm
        self.reset(num_classes, pool_type, in_features, device=device, dtype=dtype)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """A map (b, h, w, in_features) to logits (b, num_classes), the mean of both classifiers.

        In distilled training, the logits of each; with `pre_logits`, what the classifiers see (b, in_features).
        """
        if self.pool_type:
            x = self.norm(self.block(self.global_pool(x))).flatten(1)
        x = self.drop(x)
        if pre_logits:
            return x
        if not self.distilled:
            return self.fc(x)
        logits, logits_dist = self.fc(x), self.fc_dist(x)
        if self.training and self.distilled_training:
            return logits, logits_dist
        return (logits + logits_dist) / 2


def _groups(name: str) -> tuple[str, ...]:
    return tuple(f"mamba_g{group + 1}.{name}" for group in range(_GROUPS))


class GroupMamba(HierarchicalModel):
    """GroupMamba (arXiv:2407.13772).

    The features of the first three stages are normalised, as the next stage reads them. Those of the last one are not,
    with `norm` neither: the norm that was trained there belongs to the class token.

    Args:
        dims: Channels of each stage, multiples of 4.
        depths: Blocks of each stage.
        mlp_ratios: Hidden width of the MLPs over channels, for each stage.
        stem_dim: Channels inside the stem.
        distilled: Have a second classifier, to be trained by distillation.
        scan: Name of a scan order of four routes, see `visionssm.scans`; each scans a quarter of the channels.
        norm_layer: Norm over channels, a name or a class; mixer, stem and downsampling keep to layer norm.
        norm_eps: Epsilon of `norm_layer`.
        **shared: Further arguments of `HierarchicalModel`; `global_pool` is "avg", "max", "avgmax", or "" to apply the
            classifiers at every position, without class block.

    Raises:
        ValueError: the scan order has another number of routes, or an argument does not fit another one.
    """

    # there D and the norms of the groups were vectors; A_log, dt_bias and dt_weight were marked but decayed
    undecayed = (".ssm.D", ".out_norm.weight", ".out_norm.bias")
    layout = Layout(
        own=r"^stem\.down\.conv\.weight$",
        tell_tale=(r"(^|\.)block\d+\.\d+\.attn\.mamba_g\d\.",),
        stack={
            "groups.in_proj.weight": _groups("in_proj.weight"),
            "groups.conv.weight": _groups("conv2d.weight"),
            "groups.conv.bias": _groups("conv2d.bias"),
            "groups.ssm.x_proj_weight": _groups("x_proj_weight"),
            "groups.ssm.dt_weight": _groups("dt_projs_weight"),
            "groups.ssm.dt_bias": _groups("dt_projs_bias"),
            "groups.ssm.A_log": _groups("A_logs"),
            "groups.ssm.D": _groups("Ds"),
            "groups.out_norm.weight": _groups("out_norm.weight"),
            "groups.out_norm.bias": _groups("out_norm.bias"),
            "groups.out_proj.weight": _groups("out_proj.weight"),
        },
        names=(
            (r"^patch_embed1\.conv\.0\.", "stem.conv1.conv."),
            (r"^patch_embed1\.conv\.1\.", "stem.conv1.bn."),
            (r"^patch_embed1\.conv\.3\.", "stem.conv2.conv."),
            (r"^patch_embed1\.conv\.4\.", "stem.conv2.bn."),
            (r"^patch_embed1\.conv\.6\.", "stem.conv3.conv."),
            (r"^patch_embed1\.conv\.7\.", "stem.conv3.bn."),
            (r"^patch_embed1\.proj\.", "stem.down.conv."),
            (r"^patch_embed1\.norm\.", "stem.down.norm."),
            # stages count from 1 there
            (r"^patch_embed(\d+)\.proj\.", shifted("stages.{}.downsample.conv.", -1)),
            (r"^patch_embed(\d+)\.norm\.", shifted("stages.{}.downsample.norm.", -1)),
            (r"^block(\d+)\.(\d+)\.", shifted(r"stages.{}.blocks.\2.", -1)),
            (r"^post_network\.0\.", "head.block."),
            (r"^norm4\.", "head.norm."),
            (r"^norm(\d+)\.", shifted("stages.{}.norm.", -1)),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
            (r"^dist_head\.", "head.fc_dist."),
            (r"\.mlp\.dwconv\.dwconv\.", ".mlp.conv."),
            (r"\.attn\.(fc[12])\.", r".mixer.affinity.\1."),
            (r"\.attn\.", ".mixer."),
        ),
    )

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 348, 448),
        depths: Sequence[int] = (3, 4, 9, 3),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        stem_dim: int = 32,
        distilled: bool = True,
        scan: str = "cross",
        norm_layer: Any = "layernorm",
        norm_eps: float = 1e-6,
        **shared: Any,
    ):
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

        def block(place: Place, kit: Kit) -> ResidualBlock:
            dim, dd = place.dim, kit.dd
            width = int(mlp_ratios[place.stage] * dim)
            mixer = ModulatedGroupMixer(dim, scan, kit.proj_drop, **dd)
            mlp = DwConvMlp(dim, width, act_layer=kit.act_layer, drop=kit.proj_drop, **dd)
            return ResidualBlock(None, mixer, kit.norm_layer(dim, **dd), mlp, place.drop_path)

        def head(dim: int, num_classes: int, global_pool: str, drop_rate: float, kit: Kit) -> GroupMambaHead:
            return GroupMambaHead(
                ClassBlock(dim, scan, act_layer=kit.act_layer, norm_layer=kit.norm_layer, **kit.dd),
                kit.norm_layer(dim, **kit.dd),
                dim,
                num_classes,
                pool_type=global_pool,
                drop_rate=drop_rate,
                distilled=distilled,
                **kit.dd,
            )

        super().__init__(
            dims,
            depths,
            stem=lambda in_chans, dim, kit: DeepConvStem(in_chans, stem_dim, dim, **kit.dd),
            downsample=lambda dim, dim_out, kit: ConvDownsample(dim, dim_out, norm_layer=_MAP_NORM, **kit.dd),
            block=block,
            stage_norm=True,
            norm=nn.Identity,  # the one that was trained normalises the class token
            head=head,
            norm_layer=norm_layer,
            norm_eps=norm_eps,
            **shared,
        )
        self.scan = scan

    def init_own_weights(self, mode: str) -> None:
        """The original draws the convolutions anew."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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


_cfg = family_cfg(
    license="mit",
    origin_url="https://github.com/amshaker/GroupMamba",
    paper_name="GroupMamba: Efficient Group-Based Visual State Space Model",
    paper_ids="arXiv:2407.13772",
    first_conv="stem.conv1.conv",
    classifier=("head.fc", "head.fc_dist"),
    pool_size=(7, 7),
)

default_cfgs = generate_default_cfgs(
    {
        "groupmamba_tiny.in1k": _cfg(),
        "groupmamba_small.in1k": _cfg(),
        "groupmamba_base.in1k": _cfg(),
        "test_groupmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def groupmamba_tiny(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-T."""
    return build_model(
        GroupMamba, "groupmamba_tiny", pretrained, kwargs, dims=(64, 128, 348, 448), depths=(3, 4, 9, 3), stem_dim=32
    )


@register_model
def groupmamba_small(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-S."""
    return build_model(
        GroupMamba, "groupmamba_small", pretrained, kwargs, dims=(64, 128, 348, 512), depths=(3, 4, 16, 3), stem_dim=64
    )


@register_model
def groupmamba_base(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """GroupMamba-B."""
    return build_model(
        GroupMamba, "groupmamba_base", pretrained, kwargs, dims=(96, 192, 424, 512), depths=(3, 6, 21, 3), stem_dim=64
    )


@register_model
def test_groupmamba(pretrained: bool = False, **kwargs: Any) -> GroupMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    return build_model(
        GroupMamba, "test_groupmamba", pretrained, kwargs, dims=(20, 32, 48, 64), depths=(1, 1, 2, 1), stem_dim=8
    )
