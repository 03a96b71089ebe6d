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
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    ClassifierHead,
    DropPath,
    LayerNorm,
    Mlp,
    calculate_drop_path_rates,
    get_act_layer,
    get_norm_layer,
)
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import check_routes, check_state_dict, unwrap
from ..layers import SS2D, ConvDownsample, ConvStem, PatchMerging, PatchStem, Stage
from ..scans import check_scan
from ._builder import build_model
from ._hierarchical import HierarchicalModel

__all__ = ["VMamba"]


class VMambaBlock(nn.Module):
    """Residual mixer, and residual MLP if `mlp_ratio` is above 0."""

    def __init__(
        self,
        dim: int,
        d_state: int,
        ssm_ratio: float,
        scan: str,
        gated: bool,
        conv_bias: bool,
        mlp_ratio: float,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm1 = norm_layer(dim, **dd)
        self.mixer = SS2D(
            dim,
            int(ssm_ratio * dim),
            d_state,
            dt_rank=math.ceil(dim / 16),
            scan=scan,
            gated=gated,
            conv_bias=conv_bias,
            norm_layer=norm_layer,
            proj_drop=proj_drop,
            **dd,
        )
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.has_mlp = mlp_ratio > 0
        if self.has_mlp:
            self.norm2 = norm_layer(dim, **dd)
            self.mlp = Mlp(dim, int(mlp_ratio * dim), act_layer=act_layer, drop=proj_drop, **dd)
            self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.mixer(self.norm1(x)))
        if self.has_mlp:
            x = x + self.drop_path2(self.mlp(self.norm2(x)))
        return x


_STEMS = {"conv": ConvStem, "patch": PatchStem}
_DOWNSAMPLES = {"conv": ConvDownsample, "merge": PatchMerging}


class VMamba(HierarchicalModel):
    """VMamba (arXiv:2401.10166).

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier; "" for none.
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
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projections of mixer and MLP.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        act_layer: Activation of stem and MLP, a name or a class.
        norm_layer: Norm over channels, a name or a class.
        norm_eps: Epsilon of the norms.
        weight_init: "" as published, or "skip".
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
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
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | type[nn.Module] = "gelu",
        norm_layer: str | type[nn.Module] = "layernorm",
        norm_eps: float = 1e-5,
        weight_init: str = "",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        check_scan(scan)
        if stem not in _STEMS:
            raise ValueError(f"stem must be one of {', '.join(_STEMS)}, got {stem!r}")
        if downsample not in _DOWNSAMPLES:
            raise ValueError(f"downsample must be one of {', '.join(_DOWNSAMPLES)}, got {downsample!r}")
        if weight_init not in ("", "skip"):
            raise ValueError(f"weight_init must be '' or 'skip', got {weight_init!r}")
        dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        if len(dims) != len(depths):
            raise ValueError(f"dims and depths must be of one length, got {len(dims)} and {len(depths)}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.scan = scan
        self.output_fmt = "NHWC"
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = []
        act_layer = get_act_layer(act_layer)
        norm_layer = partial(get_norm_layer(norm_layer), eps=norm_eps)

        stem_kwargs = dict(act_layer=act_layer) if stem == "conv" else {}
        self.stem = _STEMS[stem](in_chans, dims[0], norm_layer=norm_layer, **stem_kwargs, **dd)
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            stages.append(
                Stage(
                    _DOWNSAMPLES[downsample](dims[i - 1], dim, norm_layer=norm_layer, **dd) if i > 0 else nn.Identity(),
                    [
                        VMambaBlock(
                            dim,
                            d_state,
                            ssm_ratio,
                            scan,
                            gated,
                            conv_bias,
                            mlp_ratio,
                            drop_path=drop_path_rates[i][j],
                            proj_drop=proj_drop_rate,
                            act_layer=act_layer,
                            norm_layer=norm_layer,
                            **dd,
                        )
                        for j in range(depth)
                    ],
                )
            )
            self.feature_info.append(dict(num_chs=dim, reduction=4 * 2**i, module=f"stages.{i}"))
        self.stages = nn.Sequential(*stages)
        self.norm = norm_layer(self.num_features, **dd)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt, **dd
        )
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the original training did not decay beyond biases and vectors.

        There the skip weights D were vectors; here they are (routes, channels). A_log, dt_bias and dt_weight were
        marked but decayed all the same.
        """
        return {name for name, _ in self.named_parameters() if name.endswith(".ssm.D")}


# the earliest files use the names on the left
_OLD_NAMES = (
    (r"^patch_embed\.proj\.", "patch_embed.0."),
    (r"^patch_embed\.norm\.", "patch_embed.2."),
    (r"\.ln_1\.", ".norm."),
    (r"\.self_attention\.", ".op."),
    (r"^norm\.", "classifier.norm."),
    (r"^head\.", "classifier.head."),
)
_NAMES = (
    (r"^layers\.(\d+)\.blocks\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm1."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.op\.", r"stages.\1.blocks.\2.mixer."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.conv2d\.", ".conv."),
    (r"\.mixer\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
    (r"\.mixer\.dt_projs_weight$", ".mixer.ssm.dt_weight"),
    (r"\.mixer\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
    (r"\.mixer\.A_logs$", ".mixer.ssm.A_log"),
    (r"\.mixer\.Ds$", ".mixer.ssm.D"),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
)
_PATCH_NAMES = ((r"^patch_embed\.0\.", "stem.conv."), (r"^patch_embed\.2\.", "stem.norm."))
_CONV_NAMES = (
    (r"^patch_embed\.0\.", "stem.conv1."),
    (r"^patch_embed\.2\.", "stem.norm1."),
    (r"^patch_embed\.5\.", "stem.conv2."),
    (r"^patch_embed\.7\.", "stem.norm2."),
)
_PROJECTION = re.compile(r"\.(in_proj|out_proj|fc1|fc2)\.weight$")


def checkpoint_filter_fn(state_dict: dict[str, Any], model: VMamba) -> dict[str, Tensor]:
    """Convert a published checkpoint, of any layout that was ever written, to the names of `VMamba`.

    A state dict of ours passes unchanged.

    Raises:
        CheckpointError: the weights do not fill the model exactly, or were made for another number of routes.
    """
    source = unwrap(state_dict)
    if "stem.conv.weight" in source or "stem.conv1.weight" in source:
        out = source
    else:
        out = {_convert_name(name, source): value for name, value in source.items()}
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    for name, value in out.items():
        shape = shapes.get(name)
        # published A_log and D have no axis for the route; projections may be stored as 1 x 1 convolutions
        if shape is not None and name.endswith((".ssm.A_log", ".ssm.D")) and value.ndim == len(shape) - 1:
            out[name] = value.reshape(shape) if value.numel() == shape.numel() else value
        elif _PROJECTION.search(name) and value.ndim == 4:
            out[name] = value.flatten(1)
    check_routes(out, model)
    check_state_dict(out, model, source)
    return out


def _convert_name(name: str, source: dict[str, Any]) -> str:
    for pattern, new in _OLD_NAMES:
        name = re.sub(pattern, new, name)
    downsample = re.match(r"^layers\.(\d+)\.downsample\.(.*)", name)
    if downsample:
        # there a stage ends with the downsampling, here the next one begins with it
        rest = re.sub(r"^3\.", "norm.", re.sub(r"^1\.", "conv.", downsample[2]))
        return f"stages.{int(downsample[1]) + 1}.downsample.{rest}"
    stem = _CONV_NAMES if "patch_embed.5.weight" in source else _PATCH_NAMES
    for pattern, new in stem + _NAMES:
        name = re.sub(pattern, new, name)
    return name


_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/"


def _cfg(asset: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": _RELEASES + asset if asset else "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1",
        "classifier": "head.fc",
        "license": "mit",
        "origin_url": "https://github.com/MzeroMiko/VMamba",
        "paper_name": "VMamba: Visual State Space Model",
        "paper_ids": "arXiv:2401.10166",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "vanilla_vmamba_tiny.in1k": _cfg("%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth", first_conv="stem.conv"),
        "vanilla_vmamba_small.in1k": _cfg("%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth", first_conv="stem.conv"),
        "vanilla_vmamba_base.in1k": _cfg("%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth", first_conv="stem.conv"),
        "vmamba_tiny_s2l5.in1k": _cfg("%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
        "vmamba_small_s2l15.in1k": _cfg("%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
        "vmamba_base_s2l15.in1k": _cfg("%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
        "vmamba_tiny_s1l8.in1k": _cfg("%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
        "vmamba_small_s1l20.in1k": _cfg("%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
        "vmamba_base_s1l20.in1k": _cfg("%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
        "test_vmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)

_VANILLA = dict(d_state=16, ssm_ratio=2.0, gated=True, conv_bias=True, mlp_ratio=0.0, stem="patch", downsample="merge")


def _create_vmamba(variant: str, pretrained: bool, **kwargs: Any) -> VMamba:
    return build_model(VMamba, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T of the first generation."""
    args = dict(dims=96, depths=(2, 2, 9, 2), **_VANILLA)
    return _create_vmamba("vanilla_vmamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def vanilla_vmamba_small(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S of the first generation."""
    args = dict(dims=96, depths=(2, 2, 27, 2), **_VANILLA)
    return _create_vmamba("vanilla_vmamba_small", pretrained, **dict(args, **kwargs))


@register_model
def vanilla_vmamba_base(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B of the first generation."""
    args = dict(dims=128, depths=(2, 2, 27, 2), **_VANILLA)
    return _create_vmamba("vanilla_vmamba_base", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T with scans of twice the width and 5 blocks in the third stage."""
    args = dict(dims=96, depths=(2, 2, 5, 2), ssm_ratio=2.0)
    return _create_vmamba("vmamba_tiny_s2l5", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S with scans of twice the width and 15 blocks in the third stage."""
    args = dict(dims=96, depths=(2, 2, 15, 2), ssm_ratio=2.0)
    return _create_vmamba("vmamba_small_s2l15", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B with scans of twice the width and 15 blocks in the third stage."""
    args = dict(dims=128, depths=(2, 2, 15, 2), ssm_ratio=2.0)
    return _create_vmamba("vmamba_base_s2l15", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T with 8 blocks in the third stage."""
    args = dict(dims=96, depths=(2, 2, 8, 2))
    return _create_vmamba("vmamba_tiny_s1l8", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S with 20 blocks in the third stage."""
    args = dict(dims=96, depths=(2, 2, 20, 2))
    return _create_vmamba("vmamba_small_s1l20", pretrained, **dict(args, **kwargs))


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B with 20 blocks in the third stage."""
    args = dict(dims=128, depths=(2, 2, 20, 2))
    return _create_vmamba("vmamba_base_s1l20", pretrained, **dict(args, **kwargs))


@register_model
def test_vmamba(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(20, 32, 48, 64), depths=(1, 1, 2, 1))
    return _create_vmamba("test_vmamba", pretrained, **dict(args, **kwargs))
