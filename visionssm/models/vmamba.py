"""VMamba: visual state-space models that scan a map along several routes.

Paper: VMamba: Visual State Space Model, https://arxiv.org/abs/2401.10166
Original code and weights: https://github.com/MzeroMiko/VMamba (MIT)

Two generations are published. The first ("vanilla") has blocks of one gated mixer with 16 states per channel, patch
embedding and patch merging; the second alternates ungated mixers with one state per channel and MLPs, and embeds and
downsamples by convolutions. Maps are (batch, height, width, channels) from stem to head; any input size works.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from timm.layers import Mlp
from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoints import Layout, shifted
from ..layers import SS2D, ConvDownsample, ConvStem, PatchMerging, PatchStem, ResidualBlock
from ..scans import check_scan
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["VMamba"]

_STEMS = {
    "conv": lambda in_chans, dim, kit: ConvStem(in_chans, dim, kit.act_layer, kit.norm_layer, **kit.dd),
    "patch": lambda in_chans, dim, kit: PatchStem(in_chans, dim, norm_layer=kit.norm_layer, **kit.dd),
}
_DOWNSAMPLES = {
    "conv": lambda dim, dim_out, kit: ConvDownsample(dim, dim_out, kit.norm_layer, **kit.dd),
    "merge": lambda dim, dim_out, kit: PatchMerging(dim, dim_out, kit.norm_layer, **kit.dd),
}


class VMamba(HierarchicalModel):
    """VMamba (arXiv:2401.10166).

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        d_state: States per channel of the scan.
        ssm_ratio: Channels of the scan over channels of the block.
        gated: Gate the mixer's output.
        conv_bias: Bias of the mixer's depthwise convolution.
        mlp_ratio: Hidden width of the MLP over channels of the block; 0 for blocks without MLP.
        stem: "conv" (two convolutions) or "patch" (one over 4 x 4 patches).
        downsample: "conv" or "merge" (2 x 2 patches).
        scan: Name of the scan order, see `visionssm.scans`; each of its routes has its own parameters.
        **shared: Arguments of `HierarchicalModel`.
    """

    # there the skip weights D were vectors, here they are (routes, channels); A_log, dt_bias and dt_weight were marked
    # but decayed all the same
    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^stem\.conv1?\.weight$",
        tell_tale=(r"(^|\.)layers\.\d+\.blocks\.\d+\.(op|self_attention)\.x_proj(_|\.)weight$",),
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
            (r"^layers\.(\d+)\.blocks\.(\d+)\.op\.", r"stages.\1.blocks.\2.mixer."),
            (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
            (r"\.conv2d\.", ".conv."),
            # the version of one file has grouped projections: routes and outputs share an axis
            (r"\.mixer\.x_proj\.weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.mixer\.dt_projs\.(weight|bias)$", r".mixer.ssm.dt_\1"),
            (r"\.mixer\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.mixer\.dt_projs_weight$", ".mixer.ssm.dt_weight"),
            (r"\.mixer\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
            (r"\.mixer\.A_logs$", ".mixer.ssm.A_log"),
            (r"\.mixer\.Ds$", ".mixer.ssm.D"),
            (r"^classifier\.norm\.", "norm."),
            (r"^classifier\.head\.", "head.fc."),
        ),
    )

    def __init__(
        self,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 8, 2),
        d_state: int = 1,
        ssm_ratio: float = 1.0,
        gated: bool = False,
        conv_bias: bool = False,
        mlp_ratio: float = 4.0,
        stem: str = "conv",
        downsample: str = "conv",
        scan: str = "cross",
        **shared: Any,
    ):
        check_scan(scan)
        if stem not in _STEMS:
            raise ValueError(f"stem must be one of {', '.join(_STEMS)}, got {stem!r}")
        if downsample not in _DOWNSAMPLES:
            raise ValueError(f"downsample must be one of {', '.join(_DOWNSAMPLES)}, got {downsample!r}")

        def block(place: Place, kit: Kit) -> ResidualBlock:
            dim, dd = place.dim, kit.dd
            mixer = SS2D(
                dim,
                int(ssm_ratio * dim),
                d_state,
                dt_rank=math.ceil(dim / 16),
                scan=scan,
                gated=gated,
                conv_bias=conv_bias,
                norm_layer=kit.norm_layer,
                proj_drop=kit.proj_drop,
                **dd,
            )
            norm1 = kit.norm_layer(dim, **dd)
            if mlp_ratio <= 0:
                return ResidualBlock(norm1, mixer, drop_path=place.drop_path)
            mlp = Mlp(dim, int(mlp_ratio * dim), act_layer=kit.act_layer, drop=kit.proj_drop, **dd)
            return ResidualBlock(norm1, mixer, kit.norm_layer(dim, **dd), mlp, place.drop_path)

        super().__init__(dims, depths, stem=_STEMS[stem], downsample=_DOWNSAMPLES[downsample], block=block, **shared)
        self.scan = scan

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """The files give both stems' first layers one name, and number a downsampling's layers in several ways."""
        for name in [name for name in state_dict if re.search(r"\.downsample\.0\.", name)]:
            # convolution and norm without the layers between them that change the order of axes
            conv, prefix = name.replace(".downsample.0.", ".downsample.conv."), name.split(".0.")[0]
            kind = name.rsplit(".", 1)[1]
            state_dict = dict(state_dict)
            if conv in state_dict:
                state_dict[f"{prefix}.norm.{kind}"] = state_dict.pop(conv)
            elif f"{prefix}.2.{kind}" in state_dict:
                state_dict[f"{prefix}.norm.{kind}"] = state_dict.pop(f"{prefix}.2.{kind}")
            state_dict[conv] = state_dict.pop(name)
        if any(isinstance(module, PatchMerging) for module in self.modules()):
            # the version of one file numbers the merging's layers: 1 is the norm, elsewhere the convolution's place
            pairs = ((r"\.downsample\.conv\.", ".downsample.norm."), (r"\.downsample\.2\.", ".downsample.reduction."))
            for pattern, new in pairs:
                state_dict = {re.sub(pattern, new, name): value for name, value in state_dict.items()}
        if hasattr(self.stem, "conv1"):
            return state_dict
        return {re.sub(r"^stem\.(conv|norm)1\.", r"stem.\1.", name): value for name, value in state_dict.items()}


_cfg = family_cfg(
    license="mit",
    origin_url="https://github.com/MzeroMiko/VMamba",
    paper_name="VMamba: Visual State Space Model",
    paper_ids="arXiv:2401.10166",
    first_conv="stem.conv1",
    classifier="head.fc",
    pool_size=(7, 7),
)
_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/"

default_cfgs = generate_default_cfgs(
    {
        "vanilla_vmamba_tiny.in1k": _cfg(
            url=_RELEASES + "%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", first_conv="stem.conv"
        ),
        "vanilla_vmamba_small.in1k": _cfg(
            url=_RELEASES + "%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth", first_conv="stem.conv"
        ),
        "vanilla_vmamba_base.in1k": _cfg(
            url=_RELEASES + "%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth", first_conv="stem.conv"
        ),
        "vmamba_tiny_s2l5.in1k": _cfg(url=_RELEASES + "%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
        "vmamba_small_s2l15.in1k": _cfg(url=_RELEASES + "%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
        "vmamba_base_s2l15.in1k": _cfg(url=_RELEASES + "%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
        "vmamba_tiny_s1l8.in1k": _cfg(url=_RELEASES + "%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
        "vmamba_small_s1l20.in1k": _cfg(url=_RELEASES + "%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
        "vmamba_base_s1l20.in1k": _cfg(url=_RELEASES + "%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
        "test_vmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)

_VANILLA = dict(d_state=16, ssm_ratio=2.0, gated=True, conv_bias=True, mlp_ratio=0.0, stem="patch", downsample="merge")


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T of the first generation."""
    return build_model(VMamba, "vanilla_vmamba_tiny", pretrained, kwargs, dims=96, depths=(2, 2, 9, 2), **_VANILLA)


@register_model
def vanilla_vmamba_small(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S of the first generation."""
    return build_model(VMamba, "vanilla_vmamba_small", pretrained, kwargs, dims=96, depths=(2, 2, 27, 2), **_VANILLA)


@register_model
def vanilla_vmamba_base(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B of the first generation."""
    return build_model(VMamba, "vanilla_vmamba_base", pretrained, kwargs, dims=128, depths=(2, 2, 27, 2), **_VANILLA)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T with scans of twice the width and 5 blocks in the third stage."""
    return build_model(VMamba, "vmamba_tiny_s2l5", pretrained, kwargs, dims=96, depths=(2, 2, 5, 2), ssm_ratio=2.0)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S with scans of twice the width and 15 blocks in the third stage."""
    return build_model(VMamba, "vmamba_small_s2l15", pretrained, kwargs, dims=96, depths=(2, 2, 15, 2), ssm_ratio=2.0)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B with scans of twice the width and 15 blocks in the third stage."""
    return build_model(VMamba, "vmamba_base_s2l15", pretrained, kwargs, dims=128, depths=(2, 2, 15, 2), ssm_ratio=2.0)


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T with 8 blocks in the third stage."""
    return build_model(VMamba, "vmamba_tiny_s1l8", pretrained, kwargs, dims=96, depths=(2, 2, 8, 2))


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S with 20 blocks in the third stage."""
    return build_model(VMamba, "vmamba_small_s1l20", pretrained, kwargs, dims=96, depths=(2, 2, 20, 2))


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B with 20 blocks in the third stage."""
    return build_model(VMamba, "vmamba_base_s1l20", pretrained, kwargs, dims=128, depths=(2, 2, 20, 2))


@register_model
def test_vmamba(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    return build_model(VMamba, "test_vmamba", pretrained, kwargs, dims=(20, 32, 48, 64), depths=(1, 1, 2, 1))
