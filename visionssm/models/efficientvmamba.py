"""EfficientVMamba: scans over interleaved parts of the map beside convolutions, then stages of convolutions alone.

Paper: EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba, https://arxiv.org/abs/2403.09977
Original code and weights: https://github.com/TerryPei/EfficientVMamba (its README says Apache-2.0; there is no licence
file)

Maps are (batch, height, width, channels) from stem to head; any input size works.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import DropPath, SqueezeExcite
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout, shifted
from ..layers import SS2D, ConvNormAct, PatchMerging, PatchStem
from ..scans import check_scan
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["EfficientVMamba"]

_SCANNED_STAGES = 2  # the further ones are convolutions


class ChannelGate(nn.Module):
    """Weights per channel from the mean of the normalised map; the map that they weigh is not normalised.

    Args:
        dim: Channels; an eighth of them inside.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, kit: Kit):
        super().__init__()
        self.norm = kit.norm_layer(dim, **kit.dd)
        self.reduce = nn.Linear(dim, dim // 8, **kit.dd)
        self.act = kit.act_layer()
        self.expand = nn.Linear(dim // 8, dim, **kit.dd)
        self.gate = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to one of the same shape."""
        mean = self.norm(x).mean((1, 2), keepdim=True)
        return x * self.gate(self.expand(self.act(self.reduce(mean))))


class ConvBranch(nn.Module):
    """Depthwise convolution, batch norm, activation, 1 x 1 convolution.

    Args:
        dim: Channels.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, kit: Kit):
        super().__init__()
        self.conv = ConvNormAct(dim, dim, 3, padding=1, groups=dim, bias=True, act_layer=kit.act_layer, **kit.dd)
        self.project = nn.Conv2d(dim, dim, 1, **kit.dd)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to one of the same shape."""
        return self.project(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class EVSSBlock(nn.Module):
    """Norm, then a mixer and a convolution side by side, both weighed by the same gate (section 3.3 of the paper).

    Args:
        dim: Channels.
        mixer: Keeps the shape of a map.
        drop_path: Rate of stochastic depth, of both branches together.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, mixer: nn.Module, drop_path: float, kit: Kit):
        super().__init__()
        self.norm = kit.norm_layer(dim, **kit.dd)
        self.mixer = mixer
        self.conv_branch = ConvBranch(dim, kit)
        self.gate = ChannelGate(dim, kit)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to one of the same shape."""
        y = self.norm(x)
        return x + self.drop_path(self.gate(self.mixer(y)) + self.gate(self.conv_branch(y)))


class InvertedResidual(nn.Module):
    """1 x 1, depthwise and 1 x 1 convolution with batch norms, squeeze and excitation between (MobileNetV3).

    Args:
        dim: Channels; four times as many inside.
        drop_path: Rate of stochastic depth.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, drop_path: float, kit: Kit):
        super().__init__()
        wide = 4 * dim
        conv = partial(ConvNormAct, act_layer=nn.ReLU, **kit.dd)
        self.expand = conv(dim, wide)
        self.conv = conv(wide, wide, 3, padding=1, groups=wide)
        self.se = SqueezeExcite(wide, rd_channels=wide // 8, **kit.dd)
        self.project = conv(wide, dim, apply_act=False)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to one of the same shape."""
        y = self.project(self.se(self.conv(self.expand(x.permute(0, 3, 1, 2)))))
        return x + self.drop_path(y.permute(0, 2, 3, 1))


class EfficientVMamba(HierarchicalModel):
    """EfficientVMamba (arXiv:2403.09977).

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage; the first two stages are scanned, the others are inverted residuals.
        d_state: States per channel of the scan.
        ssm_ratio: Channels of the scan over channels of the block.
        scan: Name of the scan order, see `visionssm.scans`; each of its routes has its own parameters.
        **shared: Arguments of `HierarchicalModel`; activation and norm are those of the scanned stages.
    """

    # there D was a vector, here it is (routes, channels)
    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^stem\.conv\.",
        tell_tale=(
            r"(^|\.)layers\.\d+\.blocks\.\d+\.se\.channel_select\.weight$",
            r"(^|\.)layers\.\d+\.\d+\.conv_pw2\.0\.weight$",
        ),
        names=(
            # as the earliest files write it
            (r"^patch_embed\.proj\.", "patch_embed.0."),
            (r"^patch_embed\.norm\.", "patch_embed.2."),
            (r"\.ln_1\.", ".norm."),
            (r"\.self_attention\.", ".op."),
            (r"^norm\.", "classifier.norm."),
            (r"^head\.", "classifier.head."),
            (r"^patch_embed\.0\.", "stem.conv."),
            (r"^patch_embed\.2\.", "stem.norm."),
            # there a stage ends with the downsampling, here the next one begins with it
            (r"^layers\.(\d+)\.(?:downsample|\d+)\.(reduction|norm)\.", shifted(r"stages.{}.downsample.\2.")),
            (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
            # a stage of convolutions is one sequence there, which begins and ends with a permutation
            (r"^layers\.(\d+)\.(\d+)\.", lambda m: f"stages.{m[1]}.blocks.{int(m[2]) - 1}."),
            (r"\.conv_branch\.0\.", ".conv_branch.conv.conv."),
            (r"\.conv_branch\.1\.", ".conv_branch.conv.bn."),
            (r"\.conv_branch\.3\.", ".conv_branch.project."),
            (r"\.se\.norm\.", ".gate.norm."),
            (r"\.se\.global_reduce\.", ".gate.reduce."),
            (r"\.se\.channel_select\.", ".gate.expand."),
            (r"\.se\.conv_reduce\.", ".se.fc1."),
            (r"\.se\.conv_expand\.", ".se.fc2."),
            (r"\.conv_pw\.0\.", ".expand.conv."),
            (r"\.conv_pw\.1\.", ".expand.bn."),
            (r"\.conv_dw\.0\.", ".conv.conv."),
            (r"\.conv_dw\.1\.", ".conv.bn."),
            (r"\.conv_pw2\.0\.", ".project.conv."),
            (r"\.conv_pw2\.1\.", ".project.bn."),
            (r"\.op\.conv2d\.", ".mixer.conv."),
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
        dims: int | Sequence[int] = 48,
        depths: Sequence[int] = (2, 2, 4, 2),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        scan: str = "atrous2",
        **shared: Any,
    ):
        check_scan(scan)

        def block(place: Place, kit: Kit) -> nn.Module:
            dim = place.dim
            if place.stage >= _SCANNED_STAGES:
                return InvertedResidual(dim, place.drop_path, kit)
            mixer = SS2D(
                dim,
                int(ssm_ratio * dim),
                d_state,
                dt_rank=math.ceil(dim / 16),
                scan=scan,
                gated=True,
                conv_bias=True,
                norm_layer=kit.norm_layer,
                proj_drop=kit.proj_drop,
                **kit.dd,
            )
            return EVSSBlock(dim, mixer, place.drop_path, kit)

        super().__init__(
            dims,
            depths,
            stem=lambda in_chans, dim, kit: PatchStem(in_chans, dim, norm_layer=kit.norm_layer, **kit.dd),
            downsample=lambda dim, dim_out, kit: PatchMerging(dim, dim_out, kit.norm_layer, **kit.dd),
            block=block,
            **shared,
        )
        self.scan = scan


_cfg = family_cfg(
    license="apache-2.0",
    origin_url="https://github.com/TerryPei/EfficientVMamba",
    paper_name="EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba",
    paper_ids="arXiv:2403.09977",
    first_conv="stem.conv",
    classifier="head.fc",
    pool_size=(7, 7),
)

default_cfgs = generate_default_cfgs(
    {
        "efficientvmamba_tiny.in1k": _cfg(),
        "efficientvmamba_small.in1k": _cfg(),
        "efficientvmamba_base.in1k": _cfg(),
        "test_efficientvmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def efficientvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-T."""
    return build_model(EfficientVMamba, "efficientvmamba_tiny", pretrained, kwargs, dims=48)


@register_model
def efficientvmamba_small(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-S."""
    return build_model(EfficientVMamba, "efficientvmamba_small", pretrained, kwargs, dims=64)


@register_model
def efficientvmamba_base(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """EfficientVMamba-B."""
    return build_model(EfficientVMamba, "efficientvmamba_base", pretrained, kwargs, dims=96, depths=(2, 2, 9, 2))


@register_model
def test_efficientvmamba(pretrained: bool = False, **kwargs: Any) -> EfficientVMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(24, 32, 48, 64), depths=(1, 1, 1, 1))
    return build_model(EfficientVMamba, "test_efficientvmamba", pretrained, kwargs, **args)
