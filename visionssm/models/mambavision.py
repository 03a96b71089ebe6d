"""MambaVision: convolutions on large maps; on small ones windows, mixed first by scans, then by attention.

Paper: MambaVision: A Hybrid Mamba-Transformer Vision Backbone, https://arxiv.org/abs/2407.08083
Original code and weights: https://github.com/NVlabs/MambaVision (code: NVIDIA Source Code License-NC; weights:
CC-BY-NC-SA-4.0, not for commercial use)

Written from a description of the model; no code of the original. Maps between stages are (batch, channels, height,
width). Images of any size work: maps are filled with zeros to whole windows, and those take part like any pixel.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, DropPath, Mlp, trunc_normal_
from timm.models import checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout, Refusal, shifted
from ..layers import ConvNormAct, ResidualBlock, SelectiveSSM, Stage
from ..scans import num_routes, scan_table
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel
from ._reorder import TokenReorder, restore_order

__all__ = ["MambaVision"]

_STEM_NORM_EPS = 1e-4  # of the stem alone; other batch norms have PyTorch's
_CONV_STAGES = 2


class MambaVisionStem(nn.Module):
    """Two 3 x 3 convolutions of stride 2, each with a batch norm and a ReLU; odd sizes round up.

    Args:
        in_chans: Channels of the image.
        stem_dim: Channels between the convolutions.
        dim: Channels out.
    """

    def __init__(self, in_chans: int, stem_dim: int, dim: int, device=None, dtype=None):
        args = dict(stride=2, padding=1, eps=_STEM_NORM_EPS)
        super().__init__()
        self.conv1 = ConvNormAct(in_chans, stem_dim, 3, **args, device=device, dtype=dtype)
        self.conv2 = ConvNormAct(stem_dim, dim, 3, **args, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, dim, ceil(h / 4), ceil(w / 4))."""
        return self.conv2(self.conv1(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)))


class ConvBlock(nn.Module):
    """x + drop_path(norm2(conv2(gelu(norm1(conv1(x)))))), by dense 3 x 3 convolutions.

    Args:
        dim: Channels.
        drop_path: Rate of stochastic depth.
    """

    def __init__(self, dim: int, drop_path: float = 0.0, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, **dd)
        self.norm1 = nn.BatchNorm2d(dim, **dd)
        self.act = nn.GELU(approximate="tanh")  # here alone, not in the MLPs
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, **dd)
        self.norm2 = nn.BatchNorm2d(dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to the same shape."""
        return x + self.drop_path(self.norm2(self.conv2(self.act(self.norm1(self.conv1(x))))))


class WindowMixer(nn.Module):
    """Projection; convolution; scan of one half of the channels; projection of both halves (section 3.2 of the paper).

    The half that is not scanned stands beside the other and gates nothing. The bias of the step size counts twice, as
    in the original, whose weights depend on it.

    Args:
        dim: Channels of the tokens, even.
        window_size: Side of the window that the tokens make up.
        scan: Name of the scan order.
        d_state: States per channel.
        d_conv: Taps of the convolution along the tokens, odd.
        proj_drop: Dropout after the output projection.
        reorder: Order of the tokens in the scan; they stay as they are stored if None.
        restore: Put the output of a reordered scan back to the tokens' places.

    Raises:
        ValueError: an odd number of channels, or several routes for reordered tokens.
    """

    def __init__(
        self,
        dim: int,
        window_size: int,
        scan: str = "raster",
        d_state: int = 8,
        d_conv: int = 3,
        proj_drop: float = 0.0,
        reorder: TokenReorder | None = None,
        restore: bool = True,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if dim % 2:
            raise ValueError(f"half of the channels are scanned, so their number must be even, got {dim}")
        if reorder is not None and scan != "raster":
            raise ValueError(
                f"reordered tokens make up no map, so they are scanned as they come: 'raster', not {scan!r}"
            )
        self.scan = scan
        self.window = (window_size, window_size)
        self.in_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.conv = nn.Conv1d(dim, dim, d_conv, padding=d_conv // 2, groups=dim, bias=False, **dd)
        self.act = nn.SiLU()
        self.ssm = SelectiveSSM(dim // 2, num_routes(scan), d_state, math.ceil(dim / 16), dt_bias_scale=2, **dd)
        self.out_proj = nn.Linear(dim, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reorder = reorder
        self.restore = restore

    def step_sizes(self, x: Tensor) -> Tensor:
        """Raw step sizes (b, L, dim / 2) of the scanned half, with their bias once."""
        rank = self.ssm.splits[0]
        return F.linear(F.linear(x, self.ssm.x_proj_weight[0, :rank]), self.ssm.dt_weight[0], self.ssm.dt_bias[0])

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens (b, window_size ** 2, dim) of windows, stored row by row; returns the same shape."""
        x, z = self.act(self.conv(self.in_proj(x).mT)).mT.chunk(2, dim=-1)
        order = scan_table(self.scan, *self.window, x.device)
        if self.reorder is None:
            y = self.ssm(x, order)
        else:
            x, places = self.reorder(x, self.step_sizes(x))
            y = self.ssm(x, order)
            y = restore_order(y, places) if self.restore else y
        return self.proj_drop(self.out_proj(torch.cat([y, z], dim=-1)))


class WindowStage(Stage):
    """A stage whose blocks see the tokens of windows; the map is filled up at the right and the bottom with zeros.

    The zeros are not masked: norms, scans and attention see them, and what blocks make of them.

    Args:
        window_size: Side of a window.
        downsample: Halves the map.
        blocks: Blocks on tokens (b, window_size ** 2, dim), stored row by row.
        norm: Norm of the stage's output, or None.
    """

    def __init__(
        self,
        window_size: int,
        downsample: nn.Module,
        blocks: Sequence[nn.Module],
        norm: nn.Module | None = None,
    ):
        super().__init__(downsample, blocks, norm)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to (b, dim_out, h', w')."""
        x = self.downsample(x)
        height, width, size = x.shape[2], x.shape[3], self.window_size
        x = F.pad(x, (0, -width % size, 0, -height % size))
        batch, dim, rows, columns = x.shape[0], x.shape[1], x.shape[2] // size, x.shape[3] // size
        x = x.reshape(batch, dim, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(batch * rows * columns, size * size, dim)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        x = x.reshape(batch, rows, columns, size, size, dim).permute(0, 5, 1, 3, 2, 4)
        x = x.reshape(batch, dim, rows * size, columns * size)
        return self.norm(x[:, :, :height, :width])


class PlainDownsample(nn.Module):
    """3 x 3 convolution of stride 2 without bias or norm; odd sizes round up.

    Args:
        dim: Channels in.
        dim_out: Channels out.
    """

    def __init__(self, dim: int, dim_out: int, device=None, dtype=None):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim_out, 3, stride=2, padding=1, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to (b, dim_out, ceil(h / 2), ceil(w / 2))."""
        return self.conv(x)


class MambaVision(HierarchicalModel):
    """MambaVision (arXiv:2407.08083).

    Stages of convolutions come first, two of them; in the stages of windows the first half of the blocks, rounded up,
    scans and the second half attends.

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        stem_dim: Channels between the stem's convolutions.
        num_heads: Heads of attention of each stage; those of convolutions have none.
        window_size: Side of a window of each stage; those of convolutions have none. Results depend on it wherever a
            map is no multiple of it, because the zeros that fill it up are not masked.
        mlp_ratio: Hidden width of the MLP over channels of the block.
        qkv_bias: Bias of the attention's queries, keys and values.
        attn_drop_rate: Dropout of attention weights.
        layer_scale: Initial value of a learned scale of each branch of the window blocks; None for no scale.
        scan: Name of the scan order inside a window, see `visionssm.scans`.
        reorder: In the first block of each stage of windows, scan the tokens in the order of a learned importance
            (arXiv:2410.03292): "soft" or "hard"; None does not. The output stays in that order, as in the original.
        **shared: Further arguments of `HierarchicalModel`.

    Raises:
        ValueError: there is no number of heads or no window for each stage, heads do not divide channels, or `reorder`
            is unknown.
    """

    # there D and the bias of the step size were vectors, here they are (1, channels); A_log was decayed
    undecayed = (".ssm.D", ".ssm.dt_bias")
    layout = Layout(
        own=r"^stages\.\d+\.blocks\.\d+\.conv2\.weight$",
        tell_tale=(
            r"(^|\.)patch_embed\.conv_down\.\d+\.weight$",
            r"(^|\.)levels\.\d+\.blocks\.\d+\.mixer\.conv1d_z\.weight$",
        ),
        stack={"mixer.conv.weight": ("mixer.conv1d_x.weight", "mixer.conv1d_z.weight")},
        names=(
            (r"^encoder\.", ""),
            (r"^patch_embed\.conv_down\.0\.", "stem.conv1.conv."),
            (r"^patch_embed\.conv_down\.1\.", "stem.conv1.bn."),
            (r"^patch_embed\.conv_down\.3\.", "stem.conv2.conv."),
            (r"^patch_embed\.conv_down\.4\.", "stem.conv2.bn."),
            (r"^levels\.(\d+)\.downsample\.reduction\.0\.", shifted("stages.{}.downsample.conv.")),
            (r"^levels\.", "stages."),
            (r"\.gamma_(\d)$", r".scale\1.gamma"),
            (r"\.mixer\.(A_log|D)$", r".mixer.ssm.\1"),
            (r"\.mixer\.x_proj\.weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.mixer\.dt_proj\.(weight|bias)$", r".mixer.ssm.dt_\1"),
            (r"\.mixer\.imporantness\.weight$", ".mixer.reorder.importance.weight"),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
        refuse=(
            Refusal(
                having=r"^model\.(patch_embed|levels)\.",
                why="these look like MambaVision weights written for the transformers library, whose layout is not "
                "known here; give the authors' .pth.tar file of the same repository instead",
            ),
        ),
    )

    def __init__(
        self,
        dims: int | Sequence[int] = 80,
        depths: Sequence[int] = (1, 3, 8, 4),
        stem_dim: int = 32,
        num_heads: Sequence[int] = (2, 4, 8, 16),
        window_size: Sequence[int] = (8, 8, 14, 7),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        layer_scale: float | None = None,
        scan: str = "raster",
        reorder: str | None = None,
        **shared: Any,
    ):
        depths = list(depths)
        if reorder not in (None, "soft", "hard"):
            raise ValueError(f"reorder must be 'soft', 'hard' or None, got {reorder!r}")
        if not len(depths) == len(num_heads) == len(window_size):
            raise ValueError(
                "depths, num_heads and window_size must be of one length, got "
                f"{len(depths)}, {len(num_heads)} and {len(window_size)}"
            )
        if min(window_size) < 1:
            raise ValueError(f"windows must have a side of at least 1, got {list(window_size)}")

        def mixer(place: Place, kit: Kit) -> nn.Module:
            dim, stage = place.dim, place.stage
            depth, index = depths[stage], place.index - sum(depths[:stage])
            if index < (depth + 1) // 2:
                first = TokenReorder(dim // 2, hard=reorder == "hard", **kit.dd) if reorder and index == 0 else None
                args = dict(proj_drop=kit.proj_drop, reorder=first, restore=False)
                return WindowMixer(dim, window_size[stage], scan, **args, **kit.dd)
            if dim % num_heads[stage]:
                raise ValueError(f"{num_heads[stage]} heads do not divide the {dim} channels of stage {stage}")
            return Attention(
                dim, num_heads[stage], qkv_bias=qkv_bias, attn_drop=attn_drop_rate, proj_drop=kit.proj_drop, **kit.dd
            )

        def block(place: Place, kit: Kit) -> nn.Module:
            dim, dd = place.dim, kit.dd
            if place.stage < _CONV_STAGES:
                return ConvBlock(dim, place.drop_path, **dd)
            return ResidualBlock(
                kit.norm_layer(dim, **dd),
                mixer(place, kit),
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
            stem=lambda in_chans, dim, kit: MambaVisionStem(in_chans, stem_dim, dim, **kit.dd),
            downsample=lambda dim, dim_out, kit: PlainDownsample(dim, dim_out, **kit.dd),
            block=block,
            stage=lambda i, *parts: Stage(*parts) if i < _CONV_STAGES else WindowStage(window_size[i], *parts),
            norm=nn.BatchNorm2d,
            output_fmt="NCHW",
            **shared,
        )
        self.scan = scan
        self.window_size = tuple(window_size)

    def init_own_weights(self, mode: str) -> None:
        """The original's rule for linear layers also reaches the projections and the step sizes of the scan."""
        for module in self.modules():
            if isinstance(module, WindowMixer):
                trunc_normal_(module.ssm.x_proj_weight, std=0.02)
                trunc_normal_(module.ssm.dt_weight, std=0.02)
                nn.init.zeros_(module.ssm.dt_bias)


_cfg = family_cfg(
    license="cc-by-nc-sa-4.0",
    origin_url="https://github.com/NVlabs/MambaVision",
    paper_name="MambaVision: A Hybrid Mamba-Transformer Vision Backbone",
    paper_ids="arXiv:2407.08083",
    first_conv="stem.conv1.conv",
    classifier="head.fc",
    pool_size=(7, 7),
    crop_pct=1.0,
)


def _hub(repository: str, file: str) -> dict[str, str]:
    return dict(hf_hub_id=f"nvidia/MambaVision-{repository}", hf_hub_filename=f"mambavision_{file}.pth.tar")


_AT_256 = dict(input_size=(3, 256, 256), pool_size=(8, 8))
_AT_512 = dict(input_size=(3, 512, 512), pool_size=(16, 16), crop_pct=0.93, crop_mode="squash")

default_cfgs = generate_default_cfgs(
    {
        "mambavision_t.in1k": _cfg(**_hub("T-1K", "tiny_1k")),
        "mambavision_t2.in1k": _cfg(**_hub("T2-1K", "tiny2_1k"), crop_pct=0.98),
        "mambavision_s.in1k": _cfg(**_hub("S-1K", "small_1k"), crop_pct=0.93),
        "mambavision_b.in1k": _cfg(**_hub("B-1K", "base_1k")),
        "mambavision_b.in21k_ft_in1k": _cfg(**_hub("B-21K", "base_21k")),
        "mambavision_l.in1k": _cfg(**_hub("L-1K", "large_1k")),
        "mambavision_l.in21k_ft_in1k": _cfg(**_hub("L-21K", "large_21k")),
        "mambavision_l2.in1k": _cfg(**_hub("L2-1K", "large2_1k")),
        "mambavision_l2_512.in21k_ft_in1k": _cfg(**_hub("L2-512-21K", "L2_21k_240m_512"), **_AT_512),
        "mambavision_l3_256.in21k_ft_in1k": _cfg(**_hub("L3-256-21K", "L3_21k_740m_256"), **_AT_256),
        "mambavision_l3_512.in21k_ft_in1k": _cfg(**_hub("L3-512-21K", "L3_21k_740m_512"), **_AT_512),
        "test_mambavision.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def mambavision_t(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T."""
    return build_model(MambaVision, "mambavision_t", pretrained, kwargs, dims=80, depths=(1, 3, 8, 4))


@register_model
def mambavision_t2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-T2."""
    return build_model(MambaVision, "mambavision_t2", pretrained, kwargs, dims=80, depths=(1, 3, 11, 4))


@register_model
def mambavision_s(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-S."""
    return build_model(MambaVision, "mambavision_s", pretrained, kwargs, dims=96, depths=(3, 3, 7, 5), stem_dim=64)


@register_model
def mambavision_b(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-B."""
    args = dict(dims=128, depths=(3, 3, 10, 5), stem_dim=64, layer_scale=1e-5)
    return build_model(MambaVision, "mambavision_b", pretrained, kwargs, **args)


_LARGE = dict(stem_dim=64, num_heads=(4, 8, 16, 32), layer_scale=1e-5)


@register_model
def mambavision_l(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L."""
    return build_model(MambaVision, "mambavision_l", pretrained, kwargs, dims=196, depths=(3, 3, 10, 5), **_LARGE)


@register_model
def mambavision_l2(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2."""
    return build_model(MambaVision, "mambavision_l2", pretrained, kwargs, dims=196, depths=(3, 3, 12, 5), **_LARGE)


@register_model
def mambavision_l2_512(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L2 for images of 512 x 512."""
    args = dict(dims=196, depths=(3, 3, 12, 5), window_size=(8, 8, 32, 16), **_LARGE)
    return build_model(MambaVision, "mambavision_l2_512", pretrained, kwargs, **args)


@register_model
def mambavision_l3_256(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L3 for images of 256 x 256."""
    args = dict(dims=256, depths=(3, 3, 20, 10), window_size=(8, 8, 16, 8), **_LARGE)
    return build_model(MambaVision, "mambavision_l3_256", pretrained, kwargs, **args)


@register_model
def mambavision_l3_512(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """MambaVision-L3 for images of 512 x 512."""
    args = dict(dims=256, depths=(3, 3, 20, 10), window_size=(8, 8, 32, 16), **_LARGE)
    return build_model(MambaVision, "mambavision_l3_512", pretrained, kwargs, **args)


@register_model
def test_mambavision(pretrained: bool = False, **kwargs: Any) -> MambaVision:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(
        dims=(16, 32, 48, 64),
        depths=(1, 1, 2, 2),
        stem_dim=16,
        num_heads=(1, 1, 2, 4),
        window_size=(4, 4, 4, 2),
        mlp_ratio=2.0,
    )
    return build_model(MambaVision, "test_mambavision", pretrained, kwargs, **args)
