"""MobileMamba: channels split between a scan with a wavelet branch, a depthwise convolution, and nothing at all.

Paper: MobileMamba: Lightweight Multi-Receptive Visual Mamba Network, https://arxiv.org/abs/2411.15941
Original code and weights: https://github.com/lewandofskee/MobileMamba (MIT)

Three stages of strides 16, 32 and 64. Maps are (batch, channels, height, width), stored with contiguous channels; any
input size works.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SelectAdaptivePool2d, make_divisible, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import ConvNormAct, SelectiveSSM, SqueezeExcite, init_projection_
from ..scans import num_routes, scan_table
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel

__all__ = ["MobileMamba"]

_ConvBN = partial(ConvNormAct, apply_act=False)


def _depthwise(dim: int, kit: Kit, stride: int = 1, act: bool = False) -> ConvNormAct:
    return ConvNormAct(
        dim, dim, 3, stride=stride, padding=1, groups=dim, apply_act=act, act_layer=kit.act_layer, **kit.dd
    )


class MobileMambaStem(nn.Module):
    """Four 3 x 3 convolutions of stride 2 with batch norms, activations between; odd sizes round up.

    Args:
        in_chans: Channels of the image.
        dim: Channels out; an eighth, a quarter and a half of it before.
        kit: What the model's parts share.
    """

    stride = 16

    def __init__(self, in_chans: int, dim: int, kit: Kit):
        super().__init__()
        dims = (in_chans, dim // 8, dim // 4, dim // 2, dim)
        conv = partial(ConvNormAct, kernel_size=3, stride=2, padding=1, act_layer=kit.act_layer, **kit.dd)
        self.convs = nn.Sequential(*(conv(dims[i], dims[i + 1], apply_act=i < 3) for i in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, dim, ceil(h / 16), ceil(w / 16))."""
        # the image is small: copying it saves copies of every map that follows
        return self.convs(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))


class ConvMlp(nn.Module):
    """Two 1 x 1 convolutions with batch norms and twice the channels between.

    Args:
        dim: Channels.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, kit: Kit):
        super().__init__()
        self.fc1 = ConvNormAct(dim, 2 * dim, act_layer=kit.act_layer, **kit.dd)
        self.fc2 = _ConvBN(2 * dim, dim, **kit.dd)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to one of the same shape."""
        return self.fc2(self.fc1(x))


class LocalBlock(nn.Module):
    """Depthwise convolution and MLP, each added to the map.

    Args:
        dim: Channels.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, kit: Kit):
        super().__init__()
        self.conv = _depthwise(dim, kit)
        self.mlp = ConvMlp(dim, kit)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to one of the same shape."""
        x = x + self.conv(x)
        return x + self.mlp(x)


class MobileMambaDownsample(nn.Module):
    """A local block, an inverted bottleneck of stride 2 with squeeze and excitation, and a local block.

    Args:
        dim: Channels in; four times as many in the bottleneck.
        dim_out: Channels out.
        kit: What the model's parts share.
    """

    stride = 2

    def __init__(self, dim: int, dim_out: int, kit: Kit):
        super().__init__()
        self.pre = LocalBlock(dim, kit)
        self.expand = ConvNormAct(dim, 4 * dim, act_layer=kit.act_layer, **kit.dd)
        self.conv = _depthwise(4 * dim, kit, stride=2, act=True)
        self.se = SqueezeExcite(4 * dim, make_divisible(dim, round_limit=0.0), **kit.dd)
        self.project = _ConvBN(4 * dim, dim_out, **kit.dd)
        self.post = LocalBlock(dim_out, kit)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to (b, dim_out, ceil(h / 2), ceil(w / 2))."""
        return self.post(self.project(self.se(self.conv(self.expand(self.pre(x))))))


class UniformStepSSM(SelectiveSSM):
    """`SelectiveSSM` that begins as VMamba's "v2": step sizes uniform, all decays 1."""

    def reset_parameters(self) -> None:
        """Initialise as said."""
        init_projection_(self.x_proj_weight)
        nn.init.uniform_(self.dt_weight, 0.0, 0.1)
        nn.init.uniform_(self.dt_bias, 0.0, 0.1)
        nn.init.zeros_(self.A_log)
        nn.init.ones_(self.D)


class ConvSS2D(nn.Module):
    """VMamba's gated mixer with 1 x 1 convolutions and batch norms as projections.

    Args:
        dim: Channels.
        dim_inner: Channels of the scan.
        scan: Name of the scan order.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, dim_inner: int, scan: str, kit: Kit):
        super().__init__()
        self.scan = scan
        self.in_proj = _ConvBN(dim, 2 * dim_inner, **kit.dd)
        self.conv = nn.Conv2d(dim_inner, dim_inner, 3, padding=1, groups=dim_inner, **kit.dd)
        self.act = nn.SiLU()
        self.ssm = UniformStepSSM(dim_inner, num_routes(scan), 1, math.ceil(dim / 16), **kit.dd)
        self.out_norm = kit.norm_layer(dim_inner, **kit.dd)
        self.out_proj = _ConvBN(dim_inner, dim, **kit.dd)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to one of the same shape."""
        height, width = x.shape[2], x.shape[3]
        x, z = self.in_proj(x).chunk(2, dim=1)
        x = self.act(self.conv(x)).permute(0, 2, 3, 1)
        x = self.ssm(x.flatten(1, 2), scan_table(self.scan, height, width, x.device))
        x = self.out_norm(x.unflatten(1, (height, width))).permute(0, 3, 1, 2)
        return self.out_proj(x * self.act(z))


class WaveletConv(nn.Module):
    """Depthwise convolution of the four bands of one wavelet level (section 3.3 of the paper).

    The filters begin as those of Haar's wavelet. They are not trained, but published files hold them.

    Args:
        dim: Channels.
        kernel_size: Side of the convolution; odd.
    """

    def __init__(self, dim: int, kernel_size: int, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.dim = dim
        self.analysis = nn.Parameter(torch.empty(4 * dim, 1, 2, 2, **dd), requires_grad=False)
        self.synthesis = nn.Parameter(torch.empty(4 * dim, 1, 2, 2, **dd), requires_grad=False)
        self.conv = nn.Conv2d(4 * dim, 4 * dim, kernel_size, padding=kernel_size // 2, groups=4 * dim, bias=False, **dd)
        self.scale = nn.Parameter(torch.empty(1, 4 * dim, 1, 1, **dd))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Haar's filters, and a small scale; the convolution initialises itself."""
        low, high = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) * 0.5**0.5
        bands = torch.stack([torch.outer(rows, columns) for columns in (low, high) for rows in (low, high)])
        for filters in (self.analysis, self.synthesis):
            filters.copy_(bands.repeat(self.dim, 1, 1).unsqueeze(1))
        nn.init.constant_(self.scale, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to one of the same shape; zeros fill odd sizes at the bottom and the right."""
        height, width = x.shape[2], x.shape[3]
        x = F.pad(x, (0, width % 2, 0, height % 2))
        x = F.conv2d(x, self.analysis.to(x.dtype), stride=2, groups=self.dim)
        x = self.conv(x) * self.scale
        x = F.conv_transpose2d(x, self.synthesis.to(x.dtype), stride=2, groups=self.dim)
        return x[:, :, :height, :width]


class GlobalMixer(nn.Module):
    """The sum of a scan, scaled per channel, and of the wavelet branch.

    Args:
        dim: Channels.
        dim_inner: Channels of the scan.
        kernel_size: Side of the wavelet branch's convolution.
        scan: Name of the scan order.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, dim_inner: int, kernel_size: int, scan: str, kit: Kit):
        super().__init__()
        self.mixer = ConvSS2D(dim, dim_inner, scan, kit)
        self.scale = nn.Parameter(torch.empty(1, dim, 1, 1, **kit.dd))
        self.wavelet = WaveletConv(dim, kernel_size, **kit.dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin without scaling; the other parts initialise themselves."""
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to one of the same shape."""
        return self.mixer(x) * self.scale + self.wavelet(x)


class LocalMixer(nn.Module):
    """Depthwise convolution and a scale per channel, each with a batch norm.

    Args:
        dim: Channels.
        kernel_size: Side of the convolution; odd.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, kernel_size: int, kit: Kit):
        super().__init__()
        self.conv = ConvNormAct(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, act_layer=kit.act_layer, **kit.dd
        )
        self.scale = _ConvBN(dim, dim, groups=dim, **kit.dd)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to one of the same shape."""
        return self.scale(self.conv(x))


class MultiReceptiveMixer(nn.Module):
    """Global mixing of the first channels, local mixing of the next, the rest as they are; then a projection of all.

    Args:
        dim: Channels.
        global_ratio: Share of the channels that are mixed globally, rounded to a multiple of 16.
        local_ratio: Share of the channels that are mixed locally, or what is left of them.
        kernel_size: Side of the convolutions.
        ssm_ratio: Channels of the scan over those mixed globally.
        scan: Name of the scan order.
        kit: What the model's parts share.
    """

    def __init__(
        self,
        dim: int,
        global_ratio: float,
        local_ratio: float,
        kernel_size: int,
        ssm_ratio: float,
        scan: str,
        kit: Kit,
    ):
        super().__init__()
        wide = (int(global_ratio * dim) + 8) // 16 * 16  # the nearest multiple of 16, ties go up
        local = min(int(local_ratio * dim), dim - wide)
        if wide < 1 or local < 1:
            raise ValueError(
                f"shares of {global_ratio} and {local_ratio} give {wide} global and {local} local ones of {dim} "
                "channels; both need at least 1, and the global ones are a multiple of 16"
            )
        self.widths = (wide, local, dim - wide - local)
        self.global_mixer = GlobalMixer(wide, int(ssm_ratio * wide), kernel_size, scan, kit)
        self.local_mixer = LocalMixer(local, kernel_size, kit)
        self.act = kit.act_layer()
        self.proj = _ConvBN(dim, dim, **kit.dd)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to one of the same shape."""
        wide, local, rest = x.split(self.widths, dim=1)
        return self.proj(self.act(torch.cat([self.global_mixer(wide), self.local_mixer(local), rest], dim=1)))


class MobileMambaBlock(nn.Module):
    """The map, and once more with convolution, MLP, mixer, convolution and MLP each added to it.

    The identity counts twice, as in the original.

    Args:
        mixer: Mixes a map (b, dim, h, w).
        dim: Channels.
        drop_path: Rate of stochastic depth.
        kit: What the model's parts share.
    """

    def __init__(self, mixer: nn.Module, dim: int, drop_path: float, kit: Kit):
        super().__init__()
        self.local1 = LocalBlock(dim, kit)
        self.mixer = mixer
        self.local2 = LocalBlock(dim, kit)
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, dim, h, w) to one of the same shape."""
        y = self.local1(x)
        return x + self.drop_path(self.local2(y + self.mixer(y)))


class NormHead(nn.Module):
    """Pooling, batch norm, dropout, classifier.

    Args:
        in_features: Channels of the map.
        num_classes: Classes; 0 for no classifier.
        pool_type: Pooling as timm names it; "" for none.
        drop_rate: Dropout before the classifier.
    """

    fc: nn.Module

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm1d(in_features, device=device, dtype=dtype)
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type, in_features, device=device, dtype=dtype)

    def reset(self, num_classes: int, pool_type: str | None, in_features: int, device=None, dtype=None) -> None:
        """Replace the classifier, and the pooling unless it is None; the norm goes where its channels do not fit."""
        if pool_type == "catavgmax":
            raise ValueError("global_pool 'catavgmax' doubles the channels, but the head's norm takes those of the map")
        if pool_type is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
        self.num_classes = num_classes
        if getattr(self.norm, "num_features", in_features) != in_features:
            self.norm = nn.Identity()
        fc = nn.Linear(in_features, num_classes, device=device, dtype=dtype) if num_classes else nn.Identity()
        self.fc = fc.train(self.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """A map (b, in_features, h, w) to logits (b, num_classes), or (b, h, w, num_classes) without pooling.

        With `pre_logits` to what the classifier sees; with neither pooling nor classifier to the map.
        """
        if self.global_pool.pool_type:
            x = self.norm(self.global_pool(x))
        elif self.num_classes:
            x = x.permute(0, 2, 3, 1)
            x = self.norm(x.flatten(0, 2)).view(x.shape)
        x = self.drop(x)
        return x if pre_logits else self.fc(x)


class MobileMamba(HierarchicalModel):
    """MobileMamba (arXiv:2411.15941).

    Args:
        dims: Channels of each stage.
        depths: Blocks of each stage.
        global_ratio: Share of the channels that are scanned, per stage; rounded to a multiple of 16.
        local_ratio: Share of the channels that are convolved, per stage.
        kernel_sizes: Side of the mixer's convolutions, per stage; odd.
        ssm_ratio: Channels of the scan over those that are scanned.
        scan: Name of the scan order, see `visionssm.scans`; each of its routes has its own parameters.
        **shared: Arguments of `HierarchicalModel`; `norm_layer` is the norm after the scan.

    Raises:
        ValueError: kernels are even, a stage has no value, or a share gives no channels.
    """

    # there D was a vector, here it is (routes, channels)
    undecayed = (".ssm.D",)
    unused = ("proj_drop_rate",)
    linear_std = None
    out_indices = (0, 1, 2)
    layout = Layout(
        own=r"^stem\.convs\.",
        tell_tale=(r"\.mixer\.m\.attn\.global_op\.wt_filter$",),
        names=(
            (r"^patch_embed\.(\d+)\.", lambda m: f"stem.convs.{int(m[1]) // 2}."),
            (r"^blocks([23])\.0\.0\.m\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.pre.conv."),
            (r"^blocks([23])\.0\.1\.m\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.pre.mlp."),
            (r"^blocks([23])\.1\.conv1\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.expand."),
            (r"^blocks([23])\.1\.conv2\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.conv."),
            (r"^blocks([23])\.1\.conv3\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.project."),
            (r"^blocks([23])\.1\.", lambda m: f"stages.{int(m[1]) - 1}.downsample."),
            (r"^blocks([23])\.2\.0\.m\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.post.conv."),
            (r"^blocks([23])\.2\.1\.m\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.post.mlp."),
            # there the downsampling takes the first three places of a stage
            (r"^blocks([23])\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 3}."),
            (r"^blocks1\.", "stages.0.blocks."),
            (r"\.dw([01])\.m\.", lambda m: f".local{int(m[1]) + 1}.conv."),
            (r"\.ffn([01])\.m\.", lambda m: f".local{int(m[1]) + 1}.mlp."),
            (r"\.mlp\.pw", ".mlp.fc"),
            (r"\.mixer\.m\.attn\.", ".mixer."),
            (r"\.mixer\.proj\.1\.", ".mixer.proj."),
            (r"\.local_op\.dwconv3x3\.", ".local_mixer.conv.conv."),
            (r"\.local_op\.bn1\.", ".local_mixer.conv.bn."),
            (r"\.local_op\.dwconv1x1\.", ".local_mixer.scale.conv."),
            (r"\.local_op\.bn2\.", ".local_mixer.scale.bn."),
            (r"\.global_op\.wt_filter$", ".global_mixer.wavelet.analysis"),
            (r"\.global_op\.iwt_filter$", ".global_mixer.wavelet.synthesis"),
            (r"\.global_op\.wavelet_convs\.0\.", ".global_mixer.wavelet.conv."),
            (r"\.global_op\.wavelet_scale\.0\.weight$", ".global_mixer.wavelet.scale"),
            (r"\.global_op\.base_scale\.weight$", ".global_mixer.scale"),
            (r"\.global_op\.global_atten\.", ".global_mixer.mixer."),
            (r"\.mixer\.conv2d\.", ".mixer.conv."),
            (r"\.mixer\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.mixer\.dt_projs_weight$", ".mixer.ssm.dt_weight"),
            (r"\.mixer\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
            (r"\.mixer\.A_logs$", ".mixer.ssm.A_log"),
            (r"\.mixer\.Ds$", ".mixer.ssm.D"),
            (r"\.c\.(weight)$", r".conv.\1"),
            (r"^head\.bn\.", "head.norm."),
            (r"^head\.l\.", "head.fc."),
        ),
    )

    def __init__(
        self,
        dims: Sequence[int] = (192, 384, 448),
        depths: Sequence[int] = (1, 2, 2),
        global_ratio: Sequence[float] = (0.8, 0.7, 0.6),
        local_ratio: Sequence[float] = (0.2, 0.2, 0.3),
        kernel_sizes: Sequence[int] = (7, 5, 3),
        ssm_ratio: float = 2.0,
        scan: str = "bidirectional",
        act_layer: str | type[nn.Module] = "relu",
        **shared: Any,
    ):
        num_routes(scan)
        per_stage = dict(global_ratio=global_ratio, local_ratio=local_ratio, kernel_sizes=kernel_sizes)
        for name, values in per_stage.items():
            if len(values) != len(depths):
                raise ValueError(f"{name} must have one value for each of {len(depths)} stages, got {values!r}")
        if any(kernel % 2 == 0 for kernel in kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd, got {kernel_sizes!r}")

        def block(place: Place, kit: Kit) -> MobileMambaBlock:
            i = place.stage
            mixer = MultiReceptiveMixer(
                place.dim, global_ratio[i], local_ratio[i], kernel_sizes[i], ssm_ratio, scan, kit
            )
            return MobileMambaBlock(mixer, place.dim, place.drop_path, kit)

        super().__init__(
            dims,
            depths,
            stem=MobileMambaStem,
            downsample=MobileMambaDownsample,
            block=block,
            norm=lambda dim, **dd: nn.Identity(),
            head=lambda dim, num_classes, global_pool, drop_rate, kit: NormHead(
                dim, num_classes, global_pool, drop_rate, **kit.dd
            ),
            output_fmt="NCHW",
            act_layer=act_layer,
            **shared,
        )
        self.scan = scan

    def init_own_weights(self, mode: str) -> None:
        """Residual branches begin with zeros, but for the convolutions of the downsampling."""
        if isinstance(self.head.fc, nn.Linear):
            trunc_normal_(self.head.fc.weight, std=0.02)
            nn.init.zeros_(self.head.fc.bias)
        for module in self.modules():
            if isinstance(module, ConvMlp):
                nn.init.zeros_(module.fc2.bn.weight)
            elif isinstance(module, MobileMambaBlock):
                for conv in (module.local1.conv, module.local2.conv, module.mixer.proj):
                    nn.init.zeros_(conv.bn.weight)

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
            self.head.norm = nn.Identity()
        return take_indices


_cfg = family_cfg(
    license="mit",
    origin_url="https://github.com/lewandofskee/MobileMamba",
    paper_name="MobileMamba: Lightweight Multi-Receptive Visual Mamba Network",
    paper_ids="arXiv:2411.15941",
    first_conv="stem.convs.0.conv",
    classifier="head.fc",
)

default_cfgs = generate_default_cfgs(
    {
        "mobilemamba_t2.in1k": _cfg(input_size=(3, 192, 192), pool_size=(3, 3)),
        "mobilemamba_t4.in1k": _cfg(input_size=(3, 192, 192), pool_size=(3, 3)),
        "mobilemamba_s6.in1k": _cfg(pool_size=(4, 4)),
        "mobilemamba_b1.in1k": _cfg(input_size=(3, 256, 256), pool_size=(4, 4)),
        "mobilemamba_b2.in1k": _cfg(input_size=(3, 384, 384), pool_size=(6, 6)),
        "mobilemamba_b4.in1k": _cfg(input_size=(3, 512, 512), pool_size=(8, 8)),
        "test_mobilemamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(1, 1)),
    }
)


@register_model
def mobilemamba_t2(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-T2, for images of 192 x 192."""
    return build_model(MobileMamba, "mobilemamba_t2", pretrained, kwargs, dims=(144, 272, 368))


@register_model
def mobilemamba_t4(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-T4, for images of 192 x 192."""
    return build_model(MobileMamba, "mobilemamba_t4", pretrained, kwargs, dims=(176, 368, 448))


@register_model
def mobilemamba_s6(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-S6, for images of 224 x 224."""
    return build_model(MobileMamba, "mobilemamba_s6", pretrained, kwargs, dims=(192, 384, 448))


_BASE = dict(dims=(200, 376, 448), depths=(2, 3, 2))


@register_model
def mobilemamba_b1(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B1, for images of 256 x 256."""
    return build_model(MobileMamba, "mobilemamba_b1", pretrained, kwargs, **_BASE)


@register_model
def mobilemamba_b2(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B2: B1 for images of 384 x 384."""
    return build_model(MobileMamba, "mobilemamba_b2", pretrained, kwargs, **_BASE)


@register_model
def mobilemamba_b4(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B4: B1 for images of 512 x 512."""
    return build_model(MobileMamba, "mobilemamba_b4", pretrained, kwargs, **_BASE)


@register_model
def test_mobilemamba(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(24, 40, 56), depths=(1, 2, 1), kernel_sizes=(5, 3, 3))
    return build_model(MobileMamba, "test_mobilemamba", pretrained, kwargs, **args)
