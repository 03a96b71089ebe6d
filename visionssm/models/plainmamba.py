"""PlainMamba: a plain model that scans its tokens along four snakes and tells the scan which way it moves.

Paper: PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition, https://arxiv.org/abs/2403.17695
Original code and weights: https://github.com/ChenhongyiYang/PlainMamba (Apache-2.0)

All routes share one set of parameters; what tells them apart is a learned offset of B for each direction of a move.
There is no class token and no MLP. Images of any size work: the patch embedding pads, the position embedding is
resampled.
"""

import math
import re
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import get_norm_layer, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .._timm_compat import register_notrace_function
from ..checkpoints import Layout
from ..layers import (
    ConvNormAct,
    StreamBlock,
    init_a_log_,
    init_dt_bias_,
    init_dt_weight_,
    is_plain_linear,
    split_linear,
    state_dtype,
)
from ..ops import selective_scan
from ..scans import direction_table, inverse_table, scan_table
from ._builder import Kit, Place, build_model, family_cfg
from ._plain import PlainModel

__all__ = ["PlainMamba"]

_DIRECTIONS = 5  # start or jump, right, left, up, down
_STEM_DIM = 64


class ConvPatchEmbed(nn.Module):
    """Convolutions at half resolution, then one over patches; incomplete patches are filled with zeros.

    Args:
        in_chans: Channels of the image.
        dim: Channels out.
        patch_size: Side of a patch of the image, even.
        depth: Number of 3 x 3 convolutions.
    """

    def __init__(self, in_chans: int, dim: int, patch_size: int = 16, depth: int = 1, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if patch_size % 2:
            raise ValueError(f"patch_size must be even, got {patch_size}: the stem halves the image first")
        self.stride = self.patch_size = patch_size
        self.stem = ConvNormAct(in_chans, _STEM_DIM, 7, stride=2, padding=3, **dd)
        self.convs = nn.Sequential(*(ConvNormAct(_STEM_DIM, _STEM_DIM, 3, padding=1, **dd) for _ in range(depth)))
        self.proj = nn.Conv2d(_STEM_DIM, dim, patch_size // 2, stride=patch_size // 2, **dd)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the map of an image."""
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, rows, columns, dim)."""
        x = self.convs(self.stem(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)))
        size = self.patch_size // 2
        x = F.pad(x, (0, -x.shape[3] % size, 0, -x.shape[2] % size))
        return self.proj(x).permute(0, 2, 3, 1)


@register_notrace_function  # fx cannot follow a decision on a module
def _product_and_bias(linear: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """linear(x) less its bias, and the bias.

    A layer that something is attached to is called for both: its bias may lie elsewhere or be of another kind.
    """
    if is_plain_linear(linear):
        return F.linear(x, linear.weight), linear.bias
    bias = linear(x.new_zeros(1, x.shape[-1]))[0]
    return linear(x) - bias, bias


class DirectionalMixer(nn.Module):
    """Projection, depthwise convolution of the map, direction-aware scan, gate, projection (section 3.2 of the paper).

    Two things are as in the original because its weights depend on them: the bias of the step size counts twice; and by
    default step t of every route takes delta, B and C from token t of the map, whichever token it reads.

    Args:
        dim: Channels of the tokens.
        d_state: States per channel.
        d_conv: Side of the convolution, odd.
        expand: Channels of the scan over channels of the tokens.
        scan: Name of the scan order.
        scan_index: "step" or "token": delta, B and C of step t are those of token t, or of the token that it reads.
        proj_drop: Dropout after the output projection.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 7,
        expand: int = 2,
        scan: str = "snake",
        scan_index: str = "step",
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.scan = scan
        self.scan_index = scan_index
        dim_inner, dt_rank = expand * dim, math.ceil(dim / 16)
        self.splits = (dt_rank, d_state, d_state)
        self.in_proj = nn.Linear(dim, 2 * dim_inner, **dd)
        self.conv = nn.Conv2d(dim_inner, dim_inner, d_conv, padding=d_conv // 2, groups=dim_inner, **dd)
        self.act = nn.SiLU()
        self.x_proj = nn.Linear(dim_inner, sum(self.splits), bias=False, **dd)
        self.dt_proj = nn.Linear(dt_rank, dim_inner, **dd)
        self.A_log = nn.Parameter(torch.empty(dim_inner, d_state, **dd))
        self.D = nn.Parameter(torch.empty(dim_inner, **dd))
        self.direction_B = nn.Parameter(torch.empty(_DIRECTIONS, d_state, **dd))
        self.out_proj = nn.Linear(dim_inner, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the module's own parameters."""
        init_a_log_(self.A_log)
        nn.init.ones_(self.D)
        trunc_normal_(self.direction_B, std=0.02)

    def reset_step_size(self) -> None:
        """Initialise the projection of the step size as Mamba does, for a bias that counts twice."""
        init_dt_weight_(self.dt_proj.weight)
        with torch.no_grad():
            init_dt_bias_(self.dt_proj.bias).div_(2)

    def ssm(self, u: Tensor, height: int, width: int, out: str = "sum") -> Tensor:
        """Scan the tokens (b, L, d) of a map; `out` as for `visionssm.ops.selective_scan`."""
        order = scan_table(self.scan, height, width, u.device)
        codes = direction_table(self.scan, height, width, u.device)
        if self.scan_index == "token":
            steps = inverse_table(self.scan, height, width, u.device).clamp(min=0)
            codes = codes.gather(1, steps.long())
        delta, b, c = self.x_proj(u).split(self.splits, dim=-1)
        # all routes share the step size, so it is expanded once; its bias is added inside the scan
        delta, bias = _product_and_bias(self.dt_proj, delta)
        b = b.unsqueeze(2) + F.embedding(codes.t(), self.direction_B)
        return selective_scan(
            u,
            delta,
            -torch.exp(state_dtype(self.A_log)),
            b,
            c,
            state_dtype(self.D),
            2 * state_dtype(bias),
            order=order,
            index=self.scan_index,
            out=out,
            out_dtype=self.D.dtype,
        )

    def convolve(self, x: Tensor, height: int, width: int) -> Tensor:
        """Depthwise convolution and activation of tokens (b, L, d) as a map."""
        x = x.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return self.act(self.conv(x)).permute(0, 2, 3, 1).flatten(1, 2)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Mix the tokens (b, L, dim) of a map of height x width."""
        x, z = split_linear(self.in_proj, x)
        y = self.ssm(self.convolve(x, height, width), height, width) * self.act(z)
        return self.proj_drop(self.out_proj(y))


class PlainMambaBlock(StreamBlock):
    """Residual mixer; with `conv`, a depthwise convolution then replaces the stream."""

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float = 0.0, conv: nn.Module | None = None):
        super().__init__(norm, mixer, drop_path)
        self.conv = conv

    def forward(
        self,
        x: Tensor,
        height: int,
        width: int,
        with_hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mix the tokens (b, L, d) of a map of height x width; as `StreamBlock`."""
        # not by super().forward(): there fx would trace state_dtype, as it looks at the names of this module only
        hidden = state_dtype(self.mixer(self.norm(x.to(self.norm.weight.dtype)), height, width))
        x = x + self.drop_path(hidden)
        if self.conv is not None:
            x = x.to(self.norm.weight.dtype).unflatten(1, (height, width)).permute(0, 3, 1, 2)
            x = state_dtype(self.conv(x).permute(0, 2, 3, 1).flatten(1, 2))
        return (x, hidden) if with_hidden else x


def _stem_conv(match: re.Match) -> str:
    """Three layers to a convolution of the stem: conv, norm, activation."""
    index, kind = divmod(int(match[1]), 3)
    return f"patch_embed.convs.{index}.{('conv', 'bn', 'act')[kind]}.{match[2]}"


class PlainMamba(PlainModel):
    """PlainMamba (arXiv:2403.17695).

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        patch_size: Side of a patch, even.
        stem_depth: Number of 3 x 3 convolutions in the stem.
        conv_blocks: Blocks that end in a depthwise convolution.
        d_state: States per channel of the scan.
        d_conv: Side of the mixers' convolution.
        expand: Channels of the scan over channels of the tokens.
        scan: Name of the scan order, see `visionssm.scans`; its routes share all parameters.
        scan_index: "step": step t of every route takes delta, B and C of token t, as published; "token": of the token
            that it reads. None takes "step" for orders that visit every token once, and "token" for the others.
        norm_layer: Norm over channels, a name or a class.
        **shared: Further arguments of `PlainModel`. `weight_init` is "" as the paper's code means to; "published" as it
            does, where the classifier's rule for linear layers overwrites the initial step sizes; or "skip".

    Raises:
        ValueError: an argument is out of its range, or "step" is asked for a scan order that skips or repeats tokens.
    """

    undecayed = ("pos_embed", ".A_log", ".D", ".direction_B")
    unused = ("act_layer", "norm_eps", "feature_stream")
    init_modes = ("", "published")
    layout = Layout(
        own=r"^blocks\.0\.mixer\.direction_B$",
        tell_tale=(r"(^|\.)layers\.\d+\.mamba\.direction_Bs$",),
        names=(
            (r"^backbone\.", ""),
            (r"^patch_embed\.convs\.(\d+)\.(\w+)$", _stem_conv),
            (r"^patch_embed\.stem\.0\.", "patch_embed.stem.conv."),
            (r"^patch_embed\.stem\.1\.", "patch_embed.stem.bn."),
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.(\d+)\.dw\.0\.", r"blocks.\1.conv.conv."),
            (r"^layers\.(\d+)\.dw\.1\.", r"blocks.\1.conv.bn."),
            (r"^layers\.(\d+)\.mamba\.conv2d\.", r"blocks.\1.mixer.conv."),
            (r"^layers\.(\d+)\.mamba\.direction_Bs$", r"blocks.\1.mixer.direction_B"),
            (r"^layers\.(\d+)\.mamba\.", r"blocks.\1.mixer."),
            (r"^layers\.", "blocks."),
            (r"^ln1\.", "norm."),
            (r"^head\.fc\.", "head."),
        ),
        drop="^ema_",  # the copies that an EMA hook leaves
    )

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 24,
        patch_size: int = 16,
        stem_depth: int = 1,
        conv_blocks: Collection[int] = (0,),
        d_state: int = 16,
        d_conv: int = 7,
        expand: int = 2,
        scan: str = "snake",
        scan_index: str | None = None,
        norm_layer: Any = "layernorm",
        **shared: Any,
    ):
        index = _check_scan_index(scan, scan_index)
        if not set(conv_blocks) <= set(range(depth)):
            raise ValueError(f"conv_blocks must be numbers of blocks, from 0 to {depth - 1}, got {list(conv_blocks)}")

        def block(place: Place, kit: Kit) -> PlainMambaBlock:
            dim, dd = place.dim, kit.dd
            conv = None
            if place.index in conv_blocks:
                conv = ConvNormAct(dim, dim, 3, padding=1, groups=dim, act_layer=nn.GELU, **dd)
            mixer = DirectionalMixer(dim, d_state, d_conv, expand, scan, index, kit.proj_drop, **dd)
            return PlainMambaBlock(kit.norm_layer(dim, **dd), mixer, place.drop_path, conv)

        super().__init__(
            embed_dim,
            depth,
            patch_embed=lambda in_chans, dim, kit: ConvPatchEmbed(in_chans, dim, patch_size, stem_depth, **kit.dd),
            block=block,
            final_norm=lambda dim, **dd: get_norm_layer(norm_layer)(dim, eps=1e-6, **dd),
            norm_layer=norm_layer,
            **shared,
        )
        self.scan = scan

    def init_own_weights(self, mode: str) -> None:
        """Initialise the position embedding and the classifier, and the step sizes unless `mode` is "published"."""
        super().init_own_weights(mode)
        if mode == "":
            for block in self.blocks:
                block.mixer.reset_step_size()
        if isinstance(self.head, nn.Linear):
            nn.init.normal_(self.head.weight, std=0.01)


def _check_scan_index(scan: str, scan_index: str | None) -> str:
    if scan_index not in (None, "step", "token"):
        raise ValueError(f"scan_index must be 'step', 'token' or None, got {scan_index!r}")
    # on a map whose sides are prime, no window or lattice comes out even
    table = scan_table(scan, 23, 29)
    tokens = torch.arange(23 * 29, device=table.device)
    permutation = table.shape[1] == len(tokens) and bool((table.sort(dim=1).values == tokens).all())
    if scan_index == "step" and not permutation:
        raise ValueError(
            f"scan_index='step' needs a scan order that visits every token once, which {scan!r} does not "
            "on all maps; use scan_index='token'"
        )
    return scan_index or ("step" if permutation else "token")


_cfg = family_cfg(
    license="apache-2.0",
    origin_url="https://github.com/ChenhongyiYang/PlainMamba",
    paper_name="PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition",
    paper_ids="arXiv:2403.17695",
    first_conv="patch_embed.stem.conv",
    classifier="head",
)
_HUB = "ChenhongyiYang/PlainMamba"

default_cfgs = generate_default_cfgs(
    {
        "plainmamba_l1.in1k": _cfg(hf_hub_id=_HUB, hf_hub_filename="l1.pth"),
        "plainmamba_l2.in1k": _cfg(hf_hub_id=_HUB, hf_hub_filename="l2.pth"),
        "plainmamba_l3.in1k": _cfg(hf_hub_id=_HUB, hf_hub_filename="l3.pth"),
        "test_plainmamba.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


@register_model
def plainmamba_l1(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L1."""
    return build_model(
        PlainMamba, "plainmamba_l1", pretrained, kwargs, embed_dim=192, depth=24, stem_depth=1, conv_blocks=(0,)
    )


@register_model
def plainmamba_l2(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L2."""
    return build_model(
        PlainMamba, "plainmamba_l2", pretrained, kwargs, embed_dim=384, depth=24, stem_depth=2, conv_blocks=()
    )


@register_model
def plainmamba_l3(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """PlainMamba-L3."""
    return build_model(
        PlainMamba, "plainmamba_l3", pretrained, kwargs, embed_dim=448, depth=36, stem_depth=2, conv_blocks=()
    )


@register_model
def test_plainmamba(pretrained: bool = False, **kwargs: Any) -> PlainMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    return build_model(PlainMamba, "test_plainmamba", pretrained, kwargs, img_size=64, embed_dim=48, depth=4, d_state=8)
