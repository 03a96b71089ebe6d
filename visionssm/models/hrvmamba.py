"""HRVMamba: four resolutions side by side, fused again and again, with deformable sampling in the mixers.

Paper: HRVMamba: High-Resolution Visual State Space Model for Dense Prediction, https://arxiv.org/abs/2410.03174
Original code and weights: https://github.com/zhanghao5201/HRVMamba (no licence)

The body is HRNet's (arXiv:1908.07919): strides 4, 8, 16 and 32 are kept to the end. A block has depthwise convolutions
of four sizes, VMamba's mixer with a deformable sampling in the place of its convolution (DCNv4, arXiv:2401.06197), and
an MLP. Maps are (batch, channels, height, width) between blocks; any input size works.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, LayerNorm, Mlp, get_device_dtype
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from .._timm_compat import feature_take_indices, register_notrace_function
from ..checkpoints import CheckpointError, Layout, shifted
from ..layers import SS2D, ConvNormAct, MapConv2d, ResidualBlock
from ..ops import deformable_sampling
from ..scans import check_scan
from ._builder import Kit, VisionModel, build_model, family_cfg, make_kit

__all__ = ["HRVMamba"]

_SAMPLES = 27  # numbers for nine samples: two offsets and a weight each
_BRANCHES = 4
_STEM_DIM = 64
_OFFSET_DIM = 80  # blocks of a multiple of so many channels look for their offsets with a convolution
_BOTTLENECK = 4  # channels out of a ResNet bottleneck over those inside
FEATURES = ("branches", "neck")


class DeformableConv(nn.Module):
    """`deformable_sampling` whose offsets and weights are projected from the map.

    Args:
        dim: Channels.
        groups: Groups of channels.
        with_conv: A depthwise convolution before the projection to offsets and weights.
        pointwise: Projections before and after the sampling.

    Raises:
        ValueError: the groups do not divide the channels.
    """

    def __init__(
        self, dim: int, groups: int, with_conv: bool = False, pointwise: bool = False, device=None, dtype=None
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if dim % groups:
            raise ValueError(f"{groups} groups of deformable sampling do not divide {dim} channels")
        self.groups = groups
        self.offset_conv = MapConv2d(dim, dim, 3, padding=1, groups=dim, **dd) if with_conv else nn.Identity()
        self.offset_mask = nn.Linear(dim, 8 * math.ceil(_SAMPLES * groups / 8), **dd)  # padded as the kernel wants it
        self.value_proj = nn.Linear(dim, dim, **dd) if pointwise else nn.Identity()
        self.output_proj = nn.Linear(dim, dim, bias=False, **dd) if pointwise else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to the same shape."""
        offset_mask = self.offset_mask(self.offset_conv(x))
        return self.output_proj(deformable_sampling(self.value_proj(x), offset_mask, self.groups))


class ExcitedLayerNorm(LayerNorm):
    """Layer norm, then a gate for each channel from the mean over the map (squeeze and excitation)."""

    def __init__(self, dim: int, eps: float = 1e-5, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, eps=eps, **dd)
        self.fc1 = nn.Linear(dim, dim // 8, bias=False, **dd)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(dim // 8, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to the same shape."""
        x = super().forward(x)
        return x * self.fc2(self.act(self.fc1(x.mean((1, 2), keepdim=True)))).sigmoid()


class LocalBranch(nn.Module):
    """Norm, depthwise convolutions of sizes 3, 5, 7 and 9 on a quarter of the channels each, shuffle, GELU.

    Args:
        dim: Channels.
        position: Add a depthwise convolution of the map to the map first.
        kit: What the model's parts share.
    """

    def __init__(self, dim: int, position: bool, kit: Kit):
        super().__init__()
        quarter = dim // 4
        self.widths = (dim - 3 * quarter, quarter, quarter, quarter)
        self.position = MapConv2d(dim, dim, 3, padding=1, groups=dim, **kit.dd) if position else None
        self.norm = kit.norm_layer(dim, **kit.dd)
        self.convs = nn.ModuleList(
            MapConv2d(width, width, 2 * i + 3, padding=i + 1, groups=width, **kit.dd)
            for i, width in enumerate(self.widths)
        )
        self.act = kit.act_layer()

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to the same shape."""
        if self.position is not None:
            x = x + self.position(x)
        parts = self.norm(x).split(self.widths, dim=-1)
        x = torch.cat([conv(parts[i]) for i, conv in enumerate(self.convs)], dim=-1)
        return self.act(x.unflatten(-1, (4, -1)).transpose(-2, -1).flatten(-2))


class DVSSBlock(ResidualBlock):
    """A local branch, then the residual block of VMamba with deformable sampling.

    Args:
        dim: Channels, a multiple of 4.
        drop_path: Rate of stochastic depth.
        scan: Name of the scan order.
        excited: With position convolutions and squeeze-and-excitation, as in the first published files ("se_lpu").
        pointwise: Projections around the sampling.
        kit: What the model's parts share.

    Raises:
        ValueError: the channels are no multiple of 4.
    """

    def __init__(self, dim: int, drop_path: float, scan: str, excited: bool, pointwise: bool, kit: Kit):
        if dim % 4:
            raise ValueError(f"the channels of a branch must be a multiple of 4, got {dim}")
        dd, rank, dim_inner = kit.dd, math.ceil(dim / 16), 2 * dim
        norm: Any = ExcitedLayerNorm if excited else kit.norm_layer
        mixer = SS2D(dim, dim_inner, 1, rank, scan, norm_layer=norm, proj_drop=kit.proj_drop, **dd)
        mixer.conv = DeformableConv(dim_inner, rank, dim % _OFFSET_DIM == 0, pointwise, **dd)
        super().__init__(
            kit.norm_layer(dim, **dd),
            mixer,
            kit.norm_layer(dim, **dd),
            Mlp(dim, 2 * dim, act_layer=kit.act_layer, drop=kit.proj_drop, **dd),
            drop_path,
            cpe2=MapConv2d(dim, dim, 3, padding=1, groups=dim, **dd) if excited else None,
        )
        self.local = LocalBranch(dim, excited, kit)

    def forward(self, x: Tensor) -> Tensor:
        """(b, dim, h, w) to the same shape."""
        x = x.permute(0, 2, 3, 1)
        x = super().forward(x + self.drop_path1(self.local(x)))
        return x.permute(0, 3, 1, 2)


class ParallelBlock(nn.Module):
    """A block for each resolution."""

    def __init__(self, branches: Sequence[nn.Module]):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, *maps: Tensor) -> list[Tensor]:
        return [block(x) for block, x in zip(self.branches, maps, strict=True)]


@register_notrace_function  # fx cannot follow a decision on sizes
def enlarge(x: Tensor, factor: int, like: Tensor) -> Tensor:
    """Enlarge by a factor, then, if that is another size, to the size of a map; in two steps, as the original."""
    x = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class Shrink(nn.Sequential):
    """Halve a map some times by depthwise and pointwise convolutions; no activation at the end."""

    def __init__(self, dim: int, dim_out: int, steps: int, kit: Kit):
        super().__init__()
        for step in range(steps):
            last = step == steps - 1
            self.append(ConvNormAct(dim, dim, 3, stride=2, padding=1, groups=dim, apply_act=False, **kit.dd))
            self.append(ConvNormAct(dim, dim_out if last else dim, 1, apply_act=not last, **kit.dd))


class FusionSum(nn.ModuleList):
    """The sum of all resolutions, brought to the size and channels of one, and ReLU.

    Args:
        dims: Channels of the branches.
        index: Which of them is made.
        kit: What the model's parts share.
    """

    def __init__(self, dims: Sequence[int], index: int, kit: Kit):
        super().__init__()
        self.index = index
        for j, dim in enumerate(dims):
            if j > index:
                self.append(ConvNormAct(dim, dims[index], 1, apply_act=False, **kit.dd))
            else:
                self.append(Shrink(dim, dims[index], index - j, kit) if j < index else nn.Identity())

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps from fine to coarse to one of them."""
        total = None
        for j, path in enumerate(self):
            y = path(maps[j])
            y = enlarge(y, 2 ** (j - self.index), maps[self.index]) if j > self.index else y
            total = y if total is None else total + y
        return F.relu(total)


class Fusion(nn.Module):
    """Every resolution becomes the sum of all.

    Args:
        dims: Channels of the branches.
        kit: What the model's parts share.
    """

    def __init__(self, dims: Sequence[int], kit: Kit):
        super().__init__()
        self.rows = nn.ModuleList(FusionSum(dims, i, kit) for i in range(len(dims)))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps from fine to coarse to the same."""
        return [row(maps) for row in self.rows]


class ParallelModule(nn.Module):
    """Blocks on parallel resolutions, then their fusion; the first module of a stage begins with a further resolution.

    Args:
        dims: Channels of the branches.
        blocks: The blocks.
        transition: Makes the branches of what comes before, one part each; None if they are there already.
        kit: What the model's parts share.
    """

    def __init__(
        self, dims: Sequence[int], blocks: Sequence[ParallelBlock], transition: Sequence[nn.Module] | None, kit: Kit
    ):
        super().__init__()
        self.grad_checkpointing = False
        self.transition = None if transition is None else nn.ModuleList(transition)
        self.blocks = nn.ModuleList(blocks)
        self.fusion = Fusion(dims, kit)

    def forward(self, maps: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Maps from fine to coarse, or the only one, to as many, or one more."""
        maps = maps if isinstance(maps, (list, tuple)) else [maps]
        if self.transition is not None:
            # the parts beyond those there are make the new branch, from the coarsest
            maps = [part(maps[min(i, len(maps) - 1)]) for i, part in enumerate(self.transition)]
        for block in self.blocks:
            maps = checkpoint(block, *maps) if self.grad_checkpointing else block(*maps)
        return self.fusion(maps)


class HRVMambaStem(nn.Module):
    """Two convolutions of stride 2, and two residual bottlenecks.

    Args:
        in_chans: Channels of the image.
        dim: Channels inside the bottlenecks; four times as many out.
        kit: What the model's parts share.
    """

    def __init__(self, in_chans: int, dim: int, kit: Kit):
        super().__init__()
        self.conv1 = ConvNormAct(in_chans, _STEM_DIM, 3, stride=2, padding=1, **kit.dd)
        self.conv2 = ConvNormAct(_STEM_DIM, _STEM_DIM, 3, stride=2, padding=1, **kit.dd)
        self.layer1 = nn.Sequential(
            _bottleneck(_STEM_DIM, dim, _STEM_DIM != _BOTTLENECK * dim, kit), _bottleneck(4 * dim, dim, False, kit)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, 4 dim, ceil(h / 4), ceil(w / 4))."""
        return self.layer1(self.conv2(self.conv1(x)))


def _bottleneck(dim: int, planes: int, project: bool, kit: Kit) -> Bottleneck:
    downsample = None
    if project:
        dim_out = _BOTTLENECK * planes
        downsample = nn.Sequential(nn.Conv2d(dim, dim_out, 1, bias=False, **kit.dd), nn.BatchNorm2d(dim_out, **kit.dd))
    return Bottleneck(dim, planes, downsample=downsample, **kit.dd)


class Neck(nn.Module):
    """HRNet's way from four resolutions to one: each is widened, and the finer ones are halved and added.

    Args:
        dims: Channels of the branches.
        dims_out: Channels that they are widened to, multiples of 4.
        dim_out: Channels at the end.
        kit: What the model's parts share.
    """

    def __init__(self, dims: Sequence[int], dims_out: Sequence[int], dim_out: int, kit: Kit):
        super().__init__()
        self.increase = nn.ModuleList(
            _bottleneck(dim, out // _BOTTLENECK, True, kit) for dim, out in zip(dims, dims_out, strict=True)
        )
        self.downsample = nn.ModuleList(
            ConvNormAct(dim, out, 3, stride=2, padding=1, **kit.dd)
            for dim, out in zip(dims_out, dims_out[1:], strict=False)
        )
        self.taps = nn.ModuleList(nn.Identity() for _ in self.downsample)  # where hooks find the sums
        self.final = ConvNormAct(dims_out[-1], dim_out, 1, **kit.dd)

    def forward(self, maps: Sequence[Tensor], with_sums: bool = False) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Maps from fine to coarse to the last one; with `with_sums`, also the sums at the finer resolutions."""
        sums = []
        x = self.increase[0](maps[0])
        for i, downsample in enumerate(self.downsample):
            sums.append(self.taps[i](x))
            x = downsample(x) + self.increase[i + 1](maps[i + 1])
        x = self.final(x)
        return (x, sums) if with_sums else x


class HRVMamba(VisionModel):
    """HRVMamba (arXiv:2410.03174).

    Args:
        dims: Channels of the four resolutions, multiples of 4.
        stem_dim: Channels inside the stem's bottlenecks.
        modules: Modules of the three stages, which have two, three and four resolutions.
        depth: Blocks of each branch of a module.
        neck_dims: Channels that the resolutions are widened to before they are added, multiples of 4.
        neck_out: Channels of the map that is pooled.
        excited: Blocks with position convolutions and squeeze-and-excitation, as in the first published files.
        pointwise: Projections around the deformable sampling.
        scan: Name of the scan order, see `visionssm.scans`; each of its routes has its own parameters.
        features: Levels of `forward_intermediates` and `features_only`: the "branches", as pose estimation takes them,
            or those of the classification "neck", as segmentation does.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier; "" for none.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projections of mixers and MLPs.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0, alike for all branches.
        act_layer: Activation of local branches and MLPs, a name or a class.
        norm_layer: Norm over channels, a name or a class.
        norm_eps: Epsilon of the norms.
        weight_init: "" as published, or "skip".

    Raises:
        TypeError: an unknown argument.
        ValueError: an argument is out of its range, or two do not fit each other.
    """

    undecayed = (".ssm.D",)
    output_fmt = "NCHW"
    layout = Layout(
        own=r"^stem\.conv1\.conv\.weight$",
        tell_tale=(r"(^|\.)stage\d+\.\d+\.branches\.\d+\.\d+\.op\.conv2d\.offset_mask\.weight$",),
        names=(
            (r"^conv(\d)\.", r"stem.conv\1.conv."),
            (r"^bn(\d)\.", r"stem.conv\1.bn."),
            (r"^layer1\.", "stem.layer1."),
            (r"^transition(\d+)\.(\d+)\.0\.0\.", shifted(r"stages.{}.0.transition.\2.conv.", -1)),
            (r"^transition(\d+)\.(\d+)\.0\.1\.", shifted(r"stages.{}.0.transition.\2.bn.", -1)),
            (r"^transition(\d+)\.(\d+)\.0\.", shifted(r"stages.{}.0.transition.\2.conv.", -1)),
            (r"^transition(\d+)\.(\d+)\.1\.", shifted(r"stages.{}.0.transition.\2.bn.", -1)),
            (r"^stage(\d+)\.(\d+)\.branches\.(\d+)\.(\d+)\.", shifted(r"stages.{}.\2.blocks.\4.branches.\3.", -2)),
            (r"^stage(\d+)\.(\d+)\.fuse_layers\.", shifted(r"stages.{}.\2.fusion.rows.", -2)),
            # a step has two convolutions there, which count on here
            (r"\.rows\.(\d+)\.(\d+)\.(\d+)\.([0-3])\.", lambda m: _shrink_name(*map(int, m.groups()))),
            (r"\.rows\.(\d+)\.(\d+)\.0\.(?=\w+$)", r".rows.\1.\2.conv."),
            (r"\.rows\.(\d+)\.(\d+)\.1\.(?=\w+$)", r".rows.\1.\2.bn."),
            (r"(\.branches\.\d+)\.cpe1\.", r"\1.local.position."),
            (r"(\.branches\.\d+)\.conv2d\.", r"\1.local.convs."),
            (r"(\.branches\.\d+)\.norm0\.", r"\1.local.norm."),
            (r"(\.branches\.\d+)\.norm\.", r"\1.norm1."),
            (r"\.op\.conv2d\.offset_mask_dw\.", ".mixer.conv.offset_conv."),
            (r"\.op\.conv2d\.", ".mixer.conv."),
            (r"\.op\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.op\.dt_projs_(weight|bias)$", r".mixer.ssm.dt_\1"),
            (r"\.op\.A_logs$", ".mixer.ssm.A_log"),
            (r"\.op\.Ds$", ".mixer.ssm.D"),
            (r"\.op\.se\.fc\.0\.", ".mixer.out_norm.fc1."),
            (r"\.op\.se\.fc\.2\.", ".mixer.out_norm.fc2."),
            (r"\.op\.", ".mixer."),
            (r"^neck\.increase_layers\.(\d+)\.0\.", r"neck.increase.\1."),
            (r"^neck\.downsample_layers\.", "neck.downsample."),
            (r"^neck\.final_layer\.", "neck.final."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ),
    )

    def __init__(
        self,
        dims: Sequence[int] = (8, 16, 32, 64),
        stem_dim: int = 16,
        modules: Sequence[int] = (1, 4, 2),
        depth: int = 2,
        neck_dims: Sequence[int] = (128, 256, 512, 1024),
        neck_out: int = 2048,
        excited: bool = False,
        pointwise: bool = False,
        scan: str = "cross",
        features: str = "branches",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | type[nn.Module] = "gelu",
        norm_layer: str | type[nn.Module] = "layernorm",
        norm_eps: float | None = 1e-5,
        weight_init: str = "",
        device=None,
        dtype=None,
        **unknown: Any,
    ):
        super().__init__()
        self.check_arguments(unknown, weight_init)
        check_scan(scan)
        if features not in FEATURES:
            raise ValueError(f"features must be {' or '.join(map(repr, FEATURES))}, got {features!r}")
        if len(dims) != _BRANCHES or len(neck_dims) != _BRANCHES or len(modules) != _BRANCHES - 1:
            raise ValueError(
                f"there are {_BRANCHES} resolutions and {_BRANCHES - 1} stages of modules, got "
                f"dims={tuple(dims)}, neck_dims={tuple(neck_dims)} and modules={tuple(modules)}"
            )
        kit = make_kit(act_layer, norm_layer, norm_eps, proj_drop_rate, device, dtype)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = neck_out
        self.excited = excited
        self.scan = scan
        self.features = features
        self.stem = HRVMambaStem(in_chans, stem_dim, kit)
        positions = depth * sum(modules)
        rates = [drop_path_rate * k / max(positions - 1, 1) for k in range(positions)]
        stages: list[nn.Module] = []
        before = [_BOTTLENECK * stem_dim]
        for stage, count in enumerate(modules):
            widths = list(dims[: stage + 2])
            stages.append(nn.Sequential())
            for i in range(count):
                blocks = []
                for rate in rates[:depth]:
                    branches = [DVSSBlock(dim, rate, scan, excited, pointwise, kit) for dim in widths]
                    blocks.append(ParallelBlock(branches))
                rates = rates[depth:]
                transition = None if i else _transition(before, widths, kit)
                stages[-1].append(ParallelModule(widths, blocks, transition, kit))
            before = widths
        self.stages = nn.Sequential(*stages)
        self.neck: nn.Module | None = Neck(dims, neck_dims, neck_out, kit)
        self.head = ClassifierHead(
            neck_out, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NCHW", **kit.dd
        )
        channels = dims if features == "branches" else (*neck_dims[:-1], neck_out)
        taps = [f"stages.{len(modules) - 1}.{modules[-1] - 1}.fusion.rows.{i}" for i in range(_BRANCHES)]
        if features == "neck":
            taps = [*(f"neck.taps.{i}" for i in range(_BRANCHES - 1)), "neck.final"]
        self.feature_info = [
            dict(num_chs=dim, reduction=4 * 2**i, module=tap)
            for i, (dim, tap) in enumerate(zip(channels, taps, strict=True))
        ]
        if weight_init != "skip":
            self.init_weights(weight_init, needs_reset=False)

    @property
    def head_hidden_size(self) -> int:
        """Channels that the classifier sees: the map's, or twice as many for a pool that joins two."""
        return self.num_features * self.head.global_pool.feat_mult()

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Nothing to adapt.

        Raises:
            CheckpointError: the weights are of the other kind of blocks, or have projections that this model lacks.
        """
        excited = any(".local.position." in name for name in state_dict)
        if excited != self.excited and any(".local.norm." in name for name in state_dict):
            kinds = ("plain blocks", "blocks with position convolutions and squeeze-and-excitation ('se_lpu')")
            raise CheckpointError(
                f"the checkpoint is of {kinds[excited]}, the model has {kinds[self.excited]}: use "
                + ("the variant with the ending '_se_lpu'" if excited else "the variant without the ending '_se_lpu'")
                + f", or excited={excited}"
            )
        ours = {name for name, _ in self.named_parameters()}
        if any(".conv.value_proj." in name and name not in ours for name in state_dict):
            raise CheckpointError(
                "the checkpoint has projections around the deformable sampling (value_proj, output_proj): build the "
                "model with pointwise=True"
            )
        return state_dict

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names per layer, for layer-wise learning rates; branches of one depth are one layer."""
        return dict(
            stem=r"^stem",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.(\d+)\.transition", (0,)),
                (r"^stages\.(\d+)\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.(\d+)\.fusion", (99999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward instead of storing what they need."""
        for stage in self.stages:
            for module in stage:
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, keeping device and dtype; 0 classes remove it, a pool of "" pools nothing."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))

    def branches(self, x: Tensor) -> list[Tensor]:
        """Images (b, c, h, w) to the maps of all resolutions, from stride 4 to 32."""
        return self.stages(self.stem(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Run the backbone and keep the maps of the resolutions.

        Args:
            x: Images (b, c, h, w).
            indices: The last n resolutions if an integer, all if None, else these.
            norm: There is no final norm; nothing changes.
            stop_early: All resolutions are needed for each; only the neck is spared.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Return the intermediates only.

        Returns:
            What `forward_features` returns, and the maps, see `features`; or the latter.

        Raises:
            ValueError: another output format.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        levels = self.branches(x)
        final = levels[-1]
        if self.features == "neck":
            final, levels = self.neck(levels, with_sums=True)
            levels.append(final)
        elif self.neck is not None and not intermediates_only:
            final = self.neck(levels)
        intermediates = [levels[i] for i in take_indices]
        if output_fmt == "NHWC":
            intermediates = [y.permute(0, 2, 3, 1) for y in intermediates]
        intermediates = [y.contiguous() for y in intermediates]
        return intermediates if intermediates_only else (final, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the levels kept do not need, and on request the head; returns the levels kept.

        The neck, if the levels are the branches, and the last fusion's coarser sums go with the head: without them
        `forward_features` returns the coarsest level that is left.
        """
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        if self.features == "branches" and (prune_head or max_index < len(self.feature_info) - 1):
            prune_head = True
            self.neck = None
            fusion = self.stages[-1][-1].fusion
            fusion.rows = fusion.rows[: max_index + 1]
            self.num_features = self.feature_info[max_index]["num_chs"]
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) to the neck's last map (b, neck_out, h / 32, w / 32)."""
        maps = self.branches(x)
        return maps[-1] if self.neck is None else self.neck(maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; with `pre_logits`, only pool."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) of any size to logits (b, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _transition(dims: Sequence[int], widths: Sequence[int], kit: Kit) -> list[nn.Module]:
    """From branches of some channels to one branch more, each part from one of them."""
    parts: list[nn.Module] = []
    for i, width in enumerate(widths):
        if i >= len(dims):
            parts.append(ConvNormAct(dims[-1], width, 3, stride=2, padding=1, **kit.dd))
        elif dims[i] != width:
            parts.append(ConvNormAct(dims[i], width, 3, padding=1, **kit.dd))
        else:
            parts.append(nn.Identity())
    return parts


def _shrink_name(i: int, j: int, step: int, part: int) -> str:
    return f".rows.{i}.{j}.{2 * step + part // 2}.{('conv', 'bn')[part % 2]}."


_cfg = family_cfg(
    license="none",
    origin_url="https://github.com/zhanghao5201/HRVMamba",
    paper_name="HRVMamba: High-Resolution Visual State Space Model for Dense Prediction",
    paper_ids="arXiv:2410.03174",
    first_conv="stem.conv1.conv",
    classifier="head.fc",
    crop_pct=1.0,
)
_at_256 = partial(_cfg, input_size=(3, 256, 256), pool_size=(8, 8))

default_cfgs = generate_default_cfgs(
    {
        "hrvmamba_nano.in1k": _at_256(),
        "hrvmamba_tiny.in1k": _at_256(),
        "hrvmamba_small.in1k": _at_256(),
        "hrvmamba_base.in1k": _cfg(pool_size=(7, 7)),
        "hrvmamba_nano_se_lpu.in1k": _at_256(),
        "hrvmamba_tiny_se_lpu.in1k": _at_256(),
        "test_hrvmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)

_NANO = dict(dims=(8, 16, 32, 64), stem_dim=16)
_TINY = dict(dims=(16, 32, 64, 128), stem_dim=32)


@register_model
def hrvmamba_nano(pretrained: bool = False, **kwargs: Any) -> HRVMamba:
    """HRVMamba-N."""
    return build_model(HRVMamba, "hrvmamba_nano", pretrained, kwargs, **_NANO)


@register_model
def hrvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> HRVMamba:
    """HRVMamba-T."""
    return build_model(HRVMamba, "hrvmamba_tiny", pretrained, kwargs, **_TINY)


@register_model
def hrvmamba_small(pretrained: bool = False, **kwargs: Any) -> HRVMamba:
    """HRVMamba-S."""
    return build_model(HRVMamba, "hrvmamba_small", pretrained, kwargs, dims=(32, 64, 128, 256), stem_dim=64)


@register_model
def hrvmamba_base(pretrained: bool = False, **kwargs: Any) -> HRVMamba:
    """HRVMamba-B."""
    return build_model(HRVMamba, "hrvmamba_base", pretrained, kwargs, dims=(80, 160, 320, 640), stem_dim=64)


@register_model
def hrvmamba_nano_se_lpu(pretrained: bool = False, **kwargs: Any) -> HRVMamba:
    """HRVMamba-N of the first published files, with position convolutions and squeeze-and-excitation."""
    return build_model(HRVMamba, "hrvmamba_nano_se_lpu", pretrained, kwargs, excited=True, **_NANO)


@register_model
def hrvmamba_tiny_se_lpu(pretrained: bool = False, **kwargs: Any) -> HRVMamba:
    """HRVMamba-T of the first published files, with position convolutions and squeeze-and-excitation."""
    return build_model(HRVMamba, "hrvmamba_tiny_se_lpu", pretrained, kwargs, excited=True, **_TINY)


@register_model
def test_hrvmamba(pretrained: bool = False, **kwargs: Any) -> HRVMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(8, 16, 24, 32), stem_dim=8, modules=(1, 1, 1), depth=1, neck_dims=(16, 24, 32, 48), neck_out=64)
    return build_model(HRVMamba, "test_hrvmamba", pretrained, kwargs, **args)
