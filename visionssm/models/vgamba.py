"""vGamba: a ResNet whose last two stages put half of the channels through a Mamba cell and half through attention.

Paper: vGamba: Attentive State Space Bottleneck for efficient Long-range Dependencies in Visual Recognition,
https://arxiv.org/abs/2503.21262 (first version; later ones describe a block without attention)
Original code: https://github.com/yunusa2k2/vGamba (no licence, no weights)

Both halves add learned positions of the columns and rows of their map, so a model is bound to the size it is built for
(`img_size`). Maps are (batch, channels, height, width).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, to_2tuple
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from .._timm_compat import register_notrace_function, update_model_input_size
from ..checkpoints import Layout, shifted
from ..layers import MambaMixer, state_dtype
from ..scans import check_scan
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["VGamba"]

_EXPANSION = 4
_PLAIN_STAGES = 2  # the first stages, whose bottlenecks have a 3 x 3 convolution
_STEM_STRIDE = 4


@register_notrace_function  # fx cannot follow a decision on sizes
def check_size(x: Tensor, height: int, width: int) -> None:
    if tuple(x.shape[2:]) != (height, width):
        raise ValueError(
            f"the positions are of a map of {height} x {width}, the map is {x.shape[2]} x {x.shape[3]}: the model is "
            "bound to the image size it was built for; build it with img_size=(height, width), or call "
            "set_input_size((height, width))"
        )


class GridPosition(nn.Module):
    """Learned positions: the sum of a part for each column and one for each row.

    Args:
        dim: Channels.
        height: Rows of the map.
        width: Columns of the map.
    """

    def __init__(self, dim: int, height: int, width: int, device=None, dtype=None):
        super().__init__()
        self.columns = nn.Parameter(torch.empty(1, dim, 1, width, device=device, dtype=dtype))
        self.rows = nn.Parameter(torch.empty(1, dim, height, 1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Standard normal values."""
        nn.init.normal_(self.columns)
        nn.init.normal_(self.rows)

    def resize(self, height: int, width: int) -> None:
        """Resample for another map."""
        for name, size in (("columns", (1, width)), ("rows", (height, 1))):
            old = getattr(self, name)
            setattr(self, name, nn.Parameter(_resample(old.detach(), size), requires_grad=old.requires_grad))

    def forward(self, x: Tensor) -> Tensor:
        """The positions (1, dim, h, w) of a map (b, c, h, w).

        Raises:
            ValueError: the map is of another size.
        """
        check_size(x, self.rows.shape[2], self.columns.shape[3])
        return self.columns + self.rows


def _resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(state_dtype(x), size=size, mode="bilinear", align_corners=False).to(x.dtype)


class GambaCell(nn.Module):
    """Mamba's mixer over the tokens with their positions, gated by a convolution over the same tokens.

    The result (b, L, dim) is read as (b, dim, h, w) as it lies in memory, as in the original: that mixes places and
    channels.

    Args:
        dim: Channels.
        grid: Rows and columns of the map.
        scan: Name of the scan order.
        d_state: States per channel.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, grid: tuple[int, int], scan: str, d_state: int, kit: Kit):
        super().__init__()
        self.position = GridPosition(dim, *grid, **kit.dd)
        self.gate = nn.Conv1d(dim, dim, 3, padding=1, **kit.dd)
        self.mixer = MambaMixer(dim, scan, d_state, proj_drop=kit.proj_drop, **kit.dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to the same shape."""
        x = x + self.position(x)
        tokens = x.flatten(2)
        gate = self.gate(tokens).sigmoid().transpose(1, 2)
        mixed = self.mixer(tokens.transpose(1, 2), x.shape[2], x.shape[3])
        return (mixed * gate).reshape(x.shape)


class GridAttention(nn.Module):
    """Global attention whose queries also meet the learned positions; scores are not scaled by the heads' width.

    `registers` and `registers_value` belong to one more head, which the original computes and drops. They are kept for
    its files and not trained.

    Args:
        dim: Channels.
        grid: Rows and columns of the map.
        heads: Number of heads.
        kit: What the model's parts share.

    Raises:
        ValueError: the heads do not divide the channels.
    """

    def __init__(self, dim: int, grid: tuple[int, int], heads: int, kit: Kit):
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide {dim} channels")
        dd = kit.dd
        self.heads = heads
        self.position = GridPosition(dim, *grid, **dd)
        self.query = nn.Conv2d(dim, dim, 1, **dd)
        self.key = nn.Conv2d(dim, dim, 1, **dd)
        self.value = nn.Conv2d(dim, dim, 1, **dd)
        self._make_registers(grid[0] * grid[1], **dd)

    def _make_registers(self, tokens: int, **dd: Any) -> None:
        width = self.query.in_channels // self.heads
        self.registers = nn.Parameter(torch.empty(1, tokens, tokens, **dd), requires_grad=False)
        self.registers_value = nn.Parameter(torch.empty(1, width, tokens, **dd), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Standard normal registers."""
        nn.init.normal_(self.registers)
        nn.init.normal_(self.registers_value)

    def resize(self, height: int, width: int) -> None:
        """Registers for another map."""
        self._make_registers(height * width, device=self.registers.device, dtype=self.registers.dtype)

    def _split(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to (b, heads, L, width)."""
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to the same shape."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        position = self._split(self.position(x)).to(query.dtype).expand_as(query)
        # q_s k_t + p_s q_t is one product
        out = F.scaled_dot_product_attention(
            torch.cat([query, position], -1), torch.cat([key, query], -1), value, scale=1.0
        )
        return out.transpose(2, 3).reshape(x.shape)


class GambaBlock(nn.Module):
    """Half of the channels through a `GambaCell`, half through `GridAttention`, and a gated sum of both.

    Args:
        dim: Channels in and out.
        grid: Rows and columns of the map.
        heads: Heads of the attention.
        scan: Name of the scan order.
        d_state: States per channel.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, grid: tuple[int, int], heads: int, scan: str, d_state: int, kit: Kit):
        super().__init__()
        half = dim // 2
        self.cell = GambaCell(half, grid, scan, d_state, kit)
        self.attention = GridAttention(half, grid, heads, kit)
        self.proj_cell = nn.Conv2d(half, dim, 1, **kit.dd)
        self.proj_attention = nn.Conv2d(half, dim, 1, **kit.dd)
        self.gate = nn.Conv2d(dim, 1, 1, **kit.dd)

    def resize(self, height: int, width: int) -> None:
        """Resample what is bound to the map."""
        for part in (self.cell.position, self.attention.position, self.attention):
            part.resize(height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to the same shape."""
        first, second = x.chunk(2, dim=1)
        first, second = self.proj_cell(self.cell(first)), self.proj_attention(self.attention(second))
        return self.gate(first).sigmoid() * first + self.gate(second).sigmoid() * second


class Bottleneck(nn.Module):
    """The residual bottleneck of ResNet around a 3 x 3 convolution or a `GambaBlock`.

    Args:
        dim: Channels in.
        planes: Channels inside; four times as many out.
        conv2: Keeps the channels inside and has the block's stride.
        stride: 1 or 2; odd sizes round up.
        drop_path: Rate of stochastic depth.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, planes: int, conv2: nn.Module, stride: int, drop_path: float, kit: Kit):
        super().__init__()
        dd, dim_out = kit.dd, _EXPANSION * planes
        self.conv1 = nn.Conv2d(dim, planes, 1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(planes, **dd)
        self.conv2 = conv2
        self.bn2 = nn.BatchNorm2d(planes, **dd)
        self.conv3 = nn.Conv2d(planes, dim_out, 1, bias=False, **dd)
        self.bn3 = nn.BatchNorm2d(dim_out, **dd)
        self.act = kit.act_layer()
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or dim != dim_out:
            self.shortcut = nn.Sequential(nn.Conv2d(dim, dim_out, 1, stride, **dd), nn.BatchNorm2d(dim_out, **dd))

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to (b, 4 planes, h / stride, w / stride)."""
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        return self.act(self.shortcut(x) + self.drop_path(self.bn3(self.conv3(y))))


class VGambaStem(nn.Module):
    """7 x 7 convolution of stride 2, batch norm, activation, pooling of stride 2; odd sizes round up."""

    def __init__(self, in_chans: int, dim: int, kit: Kit):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, dim, 7, stride=2, padding=3, bias=False, **kit.dd)
        self.bn1 = nn.BatchNorm2d(dim, **kit.dd)
        self.act = kit.act_layer()
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, dim, ceil(h / 4), ceil(w / 4))."""
        return self.pool(self.act(self.bn1(self.conv1(x))))


class VGamba(HierarchicalModel):
    """vGamba (arXiv:2503.21262, first version).

    Args:
        planes: Channels inside the bottlenecks of each stage; four times as many leave it.
        depths: Blocks of each stage; those from the third stage on are Gamba bottlenecks.
        stem_dim: Channels of the stem.
        heads: Heads of the attention.
        d_state: States per channel of the scan.
        scan: Name of the scan order, see `visionssm.scans`; each of its routes has its own parameters.
        img_size: Size of the images. The original needs multiples of 32; other sizes round up here.
        act_layer: Activation, a name or a class.
        drop_rate: Dropout before the classifier.
        **shared: Further arguments of `HierarchicalModel`.

    Raises:
        ValueError: an argument is out of its range, or does not fit another one.
    """

    undecayed = (".ssm.D", ".ssm.dt_bias", ".conv_bias")
    unused = ("norm_layer",)
    linear_std = None
    layout = Layout(
        own=r"^stages\.0\.blocks\.0\.bn1\.weight$",
        tell_tale=(r"(^|\.)layer\d+\.\d+\.conv2\.0\.ggnn\.rel_h$",),
        names=(
            (r"^(conv1|bn1)\.", r"stem.\1."),
            (r"^layer(\d+)\.(\d+)\.", shifted(r"stages.{}.blocks.\2.", -1)),
            (r"^fc\.1\.", "head.fc."),
            (r"\.rel_h$", ".position.columns"),
            (r"\.rel_w$", ".position.rows"),
            (r"\.ggnn\.gate\.0\.", ".cell.gate."),
            (r"\.ggnn\.mamba_block\.conv1d\.(weight|bias)$", r".cell.mixer.conv_\1"),
            (r"\.ggnn\.mamba_block\.x_proj\.weight$", ".cell.mixer.ssm.x_proj_weight"),
            (r"\.ggnn\.mamba_block\.dt_proj\.(weight|bias)$", r".cell.mixer.ssm.dt_\1"),
            (r"\.ggnn\.mamba_block\.(A_log|D)$", r".cell.mixer.ssm.\1"),
            (r"\.ggnn\.mamba_block\.", ".cell.mixer."),
            (r"\.ggnn\.", ".cell."),
            (r"\.mhsa\.Q\.", ".attention.query."),
            (r"\.mhsa\.K\.", ".attention.key."),
            (r"\.mhsa\.V\.", ".attention.value."),
            (r"\.mhsa\.register_tokens$", ".attention.registers"),
            (r"\.mhsa\.register_tokens_v$", ".attention.registers_value"),
            (r"\.mhsa\.", ".attention."),
            (r"\.gating\.proj_a\.", ".proj_cell."),
            (r"\.gating\.proj_b\.", ".proj_attention."),
            (r"\.gating\.gate\.", ".gate."),
        ),
    )

    def __init__(
        self,
        planes: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        stem_dim: int = 64,
        heads: int = 4,
        d_state: int = 64,
        scan: str = "raster",
        img_size: int | tuple[int, int] = 224,
        act_layer: Any = "relu",
        drop_rate: float = 0.3,
        **shared: Any,
    ):
        check_scan(scan)
        if len(planes) != len(depths):
            raise ValueError(f"planes and depths must be of one length, got {len(planes)} and {len(depths)}")
        size = to_2tuple(img_size)

        def block(place: Place, kit: Kit) -> Bottleneck:
            first = place.index == sum(depths[: place.stage])
            stride = 2 if first and place.stage > 0 else 1
            dim = place.dim
            if first:
                dim = _EXPANSION * planes[place.stage - 1] if place.stage > 0 else stem_dim
            width = planes[place.stage]
            conv2: nn.Module
            if place.stage < _PLAIN_STAGES:
                conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False, **kit.dd)
            else:
                grid = _grid(size, place.stage, first)
                conv2 = nn.Sequential(GambaBlock(width, grid, heads, scan, d_state, kit))
                if stride == 2:
                    conv2.append(nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False))
            return Bottleneck(dim, width, conv2, stride, place.drop_path, kit)

        super().__init__(
            [_EXPANSION * width for width in planes],
            depths,
            stem=lambda in_chans, dim, kit: VGambaStem(in_chans, stem_dim, kit),
            downsample=lambda dim, dim_out, kit: nn.Identity(),  # the stage's first block does it
            block=block,
            norm=nn.Identity,
            output_fmt="NCHW",
            act_layer=act_layer,
            drop_rate=drop_rate,
            **shared,
        )
        self.scan = scan
        self.img_size = size

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the positions for good, for images of another size."""
        self.img_size = to_2tuple(img_size)
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage.blocks):
                if i >= _PLAIN_STAGES:
                    block.conv2[0].resize(*_grid(self.img_size, i, j == 0))
        update_model_input_size(self, self.img_size)

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample the positions of a checkpoint of another size; the registers, which nothing reads, stay."""
        ours = self.state_dict()
        out = dict(state_dict)
        for name, value in state_dict.items():
            if name not in ours or value.shape == ours[name].shape:
                continue
            if name.endswith((".position.columns", ".position.rows")) and value.shape[:2] == ours[name].shape[:2]:
                out[name] = _resample(value, tuple(ours[name].shape[2:]))
            elif name.endswith((".attention.registers", ".attention.registers_value")):
                out[name] = ours[name]
        return out


def _grid(size: tuple[int, int], stage: int, first: bool) -> tuple[int, int]:
    """Rows and columns of the map that the Gamba block of a stage's first or further bottleneck reads."""
    stride = _STEM_STRIDE * 2 ** (stage - 1 if first else stage)
    return -(-size[0] // stride), -(-size[1] // stride)


_cfg = family_cfg(
    license="none",
    origin_url="https://github.com/yunusa2k2/vGamba",
    paper_name="vGamba: Attentive State Space Bottleneck for efficient Long-range Dependencies in Visual Recognition",
    paper_ids="arXiv:2503.21262",
    first_conv="stem.conv1",
    classifier="head.fc",
    pool_size=(7, 7),
    fixed_input_size=True,
)

default_cfgs = generate_default_cfgs(
    {
        "vgamba_b.untrained": _cfg(),
        "vgamba_l.untrained": _cfg(),
        "test_vgamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def vgamba_b(pretrained: bool = False, **kwargs: Any) -> VGamba:
    """vGamba-B."""
    return build_model(VGamba, "vgamba_b", pretrained, kwargs, depths=(3, 4, 6, 3))


@register_model
def vgamba_l(pretrained: bool = False, **kwargs: Any) -> VGamba:
    """vGamba-L; the original's code lacks it, its depths are inferred from the published size."""
    return build_model(VGamba, "vgamba_l", pretrained, kwargs, depths=(3, 4, 23, 3))


@register_model
def test_vgamba(pretrained: bool = False, **kwargs: Any) -> VGamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(img_size=64, planes=(8, 16, 24, 32), depths=(1, 1, 1, 1), stem_dim=16, heads=2, d_state=16)
    return build_model(VGamba, "test_vgamba", pretrained, kwargs, **args)
