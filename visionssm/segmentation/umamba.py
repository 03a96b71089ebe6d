"""U-Mamba: a residual U-Net with Mamba over the pixels of its maps, after the last stage or in every second one.

Paper: U-Mamba: Enhancing Long-range Dependency for Biomedical Image Segmentation, https://arxiv.org/abs/2401.04722
Original code: https://github.com/bowang-lab/U-Mamba (Apache-2.0)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import MambaMixer
from ..scans import check_scan
from ._base import MAMBA_NAMES, SegmentationModel
from ._registry import create_model, register

__all__ = ["UMamba", "from_nnunet_plans"]

_SLOPE = 0.01  # of the leaky activations
Sizes = Sequence[int | Sequence[int]]


def _conv(dim: int, dim_out: int, kernel: Sequence[int], stride: Sequence[int] | int = 1) -> nn.Module:
    """A convolution that keeps the size, but for its stride."""
    cls = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    return cls(dim, dim_out, tuple(kernel), stride, tuple(side // 2 for side in kernel))


def _norm(dim: int, spatial_dims: int) -> nn.Module:
    return (nn.InstanceNorm2d if spatial_dims == 2 else nn.InstanceNorm3d)(dim, eps=1e-5, affine=True)


class ProjectedBlock(nn.Module):
    """Two convolutions, and a projected skip; the first convolution and the projection may have a stride."""

    def __init__(self, dim: int, dim_out: int, kernel: Sequence[int], stride: Sequence[int] | int = 1):
        super().__init__()
        axes = len(kernel)
        self.conv1 = _conv(dim, dim_out, kernel, stride)
        self.norm1 = _norm(dim_out, axes)
        self.conv2 = _conv(dim_out, dim_out, kernel)
        self.norm2 = _norm(dim_out, axes)
        self.conv3 = _conv(dim, dim_out, (1,) * axes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, ...) to (b, dim_out, ...)."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), _SLOPE)
        return F.leaky_relu(self.norm2(self.conv2(y)) + self.conv3(x), _SLOPE)


class PlainBlock(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, dim: int, kernel: Sequence[int]):
        super().__init__()
        self.conv1 = _conv(dim, dim, kernel)
        self.norm1 = _norm(dim, len(kernel))
        self.conv2 = _conv(dim, dim, kernel)
        self.norm2 = _norm(dim, len(kernel))

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same shape."""
        y = F.leaky_relu(self.norm1(self.conv1(x)), _SLOPE)
        return F.leaky_relu(self.norm2(self.conv2(y)) + x, _SLOPE)


class TokenMixer(nn.Module):
    """Norm and Mamba over a map's pixels, or over its channels; there is no skip around it, as in the original.

    Args:
        dim: Channels of the map, or with `channel_tokens` its pixels.
        channel_tokens: The sequence is the channels, their features the pixels: for maps of one size only.
        scan: Name of the scan order of the pixels.
    """

    def __init__(self, dim: int, channel_tokens: bool = False, scan: str = "raster"):
        super().__init__()
        self.channel_tokens = channel_tokens
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.mamba = MambaMixer(dim, "raster" if channel_tokens else scan)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, c, ...) to a map of the same shape; computed in float32 under autocast, where float16 overflows."""
        size = x.shape[2:]
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.flatten(2).to(self.norm.weight.dtype)
            if self.channel_tokens:
                y = self.mamba(self.norm(tokens), x.shape[1], 1)
            else:
                y = self.mamba(self.norm(tokens.transpose(1, 2)), math.prod(size[:-1]), size[-1]).transpose(1, 2)
        return y.unflatten(2, size).to(x.dtype)


def _stage(dim: int, dim_out: int, depth: int, kernel: Sequence[int], stride: Sequence[int] | int = 1) -> nn.Sequential:
    return nn.Sequential(
        ProjectedBlock(dim, dim_out, kernel, stride), *(PlainBlock(dim_out, kernel) for _ in range(depth - 1))
    )


class UpStage(nn.Module):
    """Enlarge, narrow, join with a skip (but at full size), then convolutions."""

    def __init__(self, dim: int, dim_out: int, depth: int, kernel: Sequence[int], stride: Sequence[int], joins: bool):
        super().__init__()
        self.stride = tuple(stride)
        self.narrow = _conv(dim, dim_out, (1,) * len(kernel))
        self.blocks = _stage(2 * dim_out if joins else dim_out, dim_out, depth, kernel)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        """A map (b, dim, ...) to one of dim_out channels, larger by the stride."""
        size = [side * step for side, step in zip(x.shape[2:], self.stride, strict=True)]
        x = self.narrow(F.interpolate(x, size, mode="nearest"))
        return self.blocks(x if skip is None else torch.cat([x, skip], dim=1))


@register("umamba_bot", kind="bot")
@register("umamba_enc", kind="enc")
@register("test_umamba_bot", kind="bot", features=(8, 16, 16), strides=(1, 2, 2))
@register("test_umamba_enc", kind="enc", features=(8, 16, 24, 32), strides=(1, 2, 2, 2), input_size=(64, 80))
@register("test_umamba_bot_3d", kind="bot", features=(8, 12, 16), strides=(1, (1, 2, 2), 2), spatial_dims=3)
class UMamba(SegmentationModel):
    """U-Mamba (arXiv:2401.04722), as it stands outside nnU-Net.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images.
        kind: "bot" (one Mamba after the last stage) or "enc" (after every second stage, the last one included).
        features: Channels of each stage. None for nnU-Net's of `spatial_dims`: seven stages from 32 to 512 for images,
            six from 32 to 320 for volumes.
        strides: Stride of each stage, one number or one for each axis; None for 1, then 2.
        kernels: Side of each stage's convolutions, one number or one for each axis; None for 3.
        blocks: Blocks of each stage; the coarser half has one, whatever is said here.
        blocks_decoder: The same of the decoder, coarsest first; its finer part has one.
        spatial_dims: 2, or 3 for volumes.
        input_size: Size of the images; "enc" needs it, because stages of no more pixels than channels mix their
            channels as tokens, which ties the weights to it.
        channel_tokens: False to mix pixels in all stages: any size, but files of the authors do not fit.
        scan: Name of the scan order of the pixels; of the slices below each other for volumes.
        deep_supervision: In training, return a tuple of the logits at all sizes but the coarsest map's, finest first;
            only the finest are cropped where images are padded.
        pad: Take any size, see `SegmentationModel`.

    Raises:
        ValueError: an argument is out of its range, or two do not fit each other.
    """

    min_cells = 2
    linear_std = None
    undecayed = (".ssm.D", ".ssm.dt_bias", ".conv_bias")
    aliases = (
        (r"^decoder\.encoder\.", "encoder."),
        (r"\.all_modules\.0\.", ".conv."),
        (r"\.all_modules\.1\.", ".norm."),
    )
    layout = Layout(
        own=r"^heads\.0\.",
        tell_tale=(r"(^|\.)encoder\.stem\.0\.conv3\.", r"(^|\.)mamba_layers?\.", r"(^|\.)decoder\.seg_layers\."),
        names=(
            *MAMBA_NAMES,
            (r"\.conv([12])\.(conv|norm)\.", r".\2\1."),
            (r"^encoder\.stem\.", "stem."),
            (r"^encoder\.stages\.", "stages."),
            (r"^encoder\.mamba_layers\.(\d+)\.", r"mixers.\1."),
            (r"^decoder\.upsample_layers\.(\d+)\.conv\.", r"decoder.\1.narrow."),
            (r"^decoder\.stages\.(\d+)\.", r"decoder.\1.blocks."),
            (r"^decoder\.seg_layers\.(\d+)\.", r"heads.\1."),
        ),
    )

    def __init__(
        self,
        num_classes: int = 2,
        in_chans: int = 1,
        kind: str = "bot",
        features: Sequence[int] | None = None,
        strides: Sizes | None = None,
        kernels: Sizes | None = None,
        blocks: Sequence[int] | int = 2,
        blocks_decoder: Sequence[int] | int = 2,
        spatial_dims: int = 2,
        input_size: Sequence[int] | None = None,
        channel_tokens: bool = True,
        scan: str = "raster",
        deep_supervision: bool = False,
        pad: bool = True,
    ):
        if kind not in ("bot", "enc"):
            raise ValueError(f"kind must be 'bot' or 'enc', got {kind!r}")
        check_scan(scan)
        if features is None:
            features = (32, 64, 128, 256, 512, 512, 512) if spatial_dims == 2 else (32, 64, 128, 256, 320, 320)
        count = len(features)
        steps = _per_axis("strides", strides or (1, *(2,) * (count - 1)), count, spatial_dims)
        sides = _per_axis("kernels", kernels or (3,) * count, count, spatial_dims)
        if any(step != 1 for step in steps[0]) or any(side % 2 == 0 for kernel in sides for side in kernel):
            raise ValueError(f"the first stride must be 1 and kernels odd, got {steps[0]} and {sides}")
        multiple = [math.prod(axis) for axis in zip(*steps, strict=True)]
        super().__init__(in_chans, num_classes, multiple, pad, spatial_dims)
        # as the original cuts the lists it is given
        down = _depths("blocks", blocks, count, math.ceil(count / 2))
        up = _depths("blocks_decoder", blocks_decoder, count - 1, math.ceil((count - 1) / 2 + 0.5))
        self.kind = kind
        self.deep_supervision = deep_supervision
        self.classifier = tuple(f"heads.{i}" for i in reversed(range(count - 1)))

        dims = list(features)
        self.stem = _stage(in_chans, dims[0], down[0], sides[0])
        self.stages = nn.ModuleList(
            _stage(dims[max(i - 1, 0)], dims[i], down[i], sides[i], steps[i]) for i in range(count)
        )
        self.mixers = nn.ModuleList()
        self.input_size: tuple[int, ...] | None = None
        if kind == "enc":
            self._add_mixers(dims, steps, input_size, channel_tokens, scan)
        else:
            self.mamba_layer = TokenMixer(dims[-1], scan=scan)
        self.decoder = nn.ModuleList(
            UpStage(dims[i + 1], dims[i], up[count - 2 - i], sides[i], steps[i + 1], joins=i > 0)
            for i in reversed(range(count - 1))
        )
        self.heads = nn.ModuleList(_conv(dims[i], num_classes, (1,) * spatial_dims) for i in reversed(range(count - 1)))
        self.init_weights(needs_reset=False)

    def _add_mixers(
        self,
        dims: Sequence[int],
        steps: Sequence[Sequence[int]],
        input_size: Sequence[int] | None,
        channel_tokens: bool,
        scan: str,
    ) -> None:
        """A mixer after every second stage, counted from the last; it mixes channels where these are the more."""
        if channel_tokens and input_size is None:
            raise ValueError(
                "umamba_enc needs input_size, the size of the images: its coarser stages mix channels whose features "
                "are all pixels; or set channel_tokens=False, for any size but not for files of the authors"
            )
        size = tuple(input_size) if channel_tokens and input_size is not None else None
        if size is not None and (
            len(size) != self.spatial_dims or any(side % m for side, m in zip(size, self.size_multiple, strict=True))
        ):
            raise ValueError(f"input_size must be multiples of {self.size_multiple}, got {size}")
        pixels = math.prod(size) if size else 0
        for i, dim in enumerate(dims):
            pixels //= math.prod(steps[i])
            if (i + len(dims)) % 2 == 0:
                self.mixers.append(nn.Identity())
            elif 0 < pixels <= dim:
                self.mixers.append(TokenMixer(pixels, channel_tokens=True))
                self.input_size = size
            else:
                self.mixers.append(TokenMixer(dim, scan=scan))

    def forward_logits(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The model itself, for sides that are multiples of `size_multiple`."""
        if self.deep_supervision and self.training:
            return tuple(self.forward_all(x))
        return self.heads[-1](self._decode(x)[-1])

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """Logits at all sizes but the coarsest map's, finest first."""
        return [head(y) for head, y in zip(self.heads, self._decode(x), strict=True)][::-1]

    def _decode(self, x: Tensor) -> list[Tensor]:
        """Maps of the decoder, coarsest first."""
        if self.input_size is not None and tuple(x.shape[2:]) != self.input_size:
            raise ValueError(
                f"this umamba_enc was built for images of {self.input_size}, got {tuple(x.shape[2:])} (padded): its "
                "coarser stages mix channels whose features are all pixels; build it with that input_size, or with "
                "channel_tokens=False for any size"
            )
        x = self.stem(x)
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if self.kind == "enc":
                x = self.mixers[i](x)
            maps.append(x)
        if self.kind == "bot":
            x = self.mamba_layer(x)
        out = []
        for i, up in zip(reversed(range(len(self.stages) - 1)), self.decoder, strict=True):
            x = up(x, maps[i] if i else None)
            out.append(x)
        return out

    def init_own_weights(self, mode: str) -> None:
        """Normal convolutions as nnU-Net draws them (He), no biases; Mamba's parts have their own."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, a=_SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _per_axis(what: str, values: Sizes, count: int, axes: int) -> list[tuple[int, ...]]:
    out = [(value,) * axes if isinstance(value, int) else tuple(value) for value in values]
    if len(out) != count or any(len(value) != axes for value in out):
        raise ValueError(f"{what} must be {count} entries, numbers or {axes} numbers each; got {values}")
    return out


def _depths(what: str, depths: Sequence[int] | int, count: int, shallow_from: int) -> list[int]:
    out = [depths] * count if isinstance(depths, int) else list(depths)
    if len(out) != count or min(out) < 1:
        raise ValueError(f"{what} must be {count} numbers from 1, got {depths}")
    return [1 if i >= shallow_from else depth for i, depth in enumerate(out)]


def from_nnunet_plans(plans: Mapping[str, Any], configuration: str, **kwargs: Any) -> UMamba:
    """Build a U-Mamba as nnU-Net's plans say.

    Args:
        plans: Content of `nnUNetPlans.json`, or `init_args.plans` of an nnU-Net checkpoint, of either layout.
        configuration: "2d", "3d_fullres" or another one of the plans.
        **kwargs: Arguments of `UMamba`: `kind` ("bot" if not given), `num_classes`, `in_chans`, which the plans do not
            hold; or `checkpoint`, `device`, `dtype`.

    Raises:
        ValueError: the plans have no such configuration.
    """
    known = plans["configurations"]
    if configuration not in known:
        raise ValueError(f"the plans have no configuration {configuration!r}, only {', '.join(known)}")
    plan = dict(known[configuration])
    while parent := plan.pop("inherits_from", None):
        plan = {**known[parent], **plan}
    architecture = plan.get("architecture", {}).get("arch_kwargs")
    if architecture:
        features, strides = architecture["features_per_stage"], architecture["strides"]
        kernels = architecture["kernel_sizes"]
        blocks = architecture.get("n_conv_per_stage", architecture.get("n_blocks_per_stage"))
        blocks_decoder = architecture["n_conv_per_stage_decoder"]
    else:
        strides, kernels = plan["pool_op_kernel_sizes"], plan["conv_kernel_sizes"]
        base, most = plan["UNet_base_num_features"], plan["unet_max_num_features"]
        features = [min(base * 2**i, most) for i in range(len(strides))]
        blocks, blocks_decoder = plan["n_conv_per_stage_encoder"], plan["n_conv_per_stage_decoder"]
    size = plan["patch_size"]
    args = dict(
        features=features,
        strides=strides,
        kernels=kernels,
        blocks=blocks,
        blocks_decoder=blocks_decoder,
        input_size=size,
        spatial_dims=len(size),
    )
    return create_model(f"umamba_{kwargs.pop('kind', 'bot')}", **{**args, **kwargs})  # type: ignore[return-value]
