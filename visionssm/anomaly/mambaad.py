"""MambaAD: the fusion of a frozen ResNet's maps, and the decoder that rebuilds them.

Paper: MambaAD: Exploring State Space Models for Multi-class Unsupervised Anomaly Detection,
https://arxiv.org/abs/2404.06564
Original code: https://github.com/lewandofskee/MambaAD (no licence; written from a description of it)
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, calculate_drop_path_rates
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from ..checkpoints import Layout, unwrap
from ..errors import CheckpointError
from ..layers import SS2D, SS2D_NAMES, PatchExpand, ResidualBlock
from ..models._builder import VisionModel
from ..scans import check_scan, inverse_table, scan_table

__all__ = ["LocalityEnhancedBlock", "MambaADDecoder", "MambaADFusion"]

_norm = partial(LayerNorm, eps=1e-5)
_TURNS = {8: ("", "_t", "_r90", "_mirror"), 4: ("", "_t"), 2: ("",)}


def directions(scan: str, count: int) -> str:
    """Name of a one-route order in 8, 4 or 2 directions: on the turned maps, then the same reversed."""
    if count not in _TURNS:
        raise ValueError(f"directions must be 2, 4 or 8, got {count}")
    check_scan(scan)
    return "+".join(f"{scan}{turn}{flip}" for flip in ("", "_flip") for turn in _TURNS[count])


class LocalityEnhancedBlock(nn.Module):
    """Scans in sequence beside two branches of convolutions, joined and added to the input (arXiv:2404.06564, 3.3).

    Args:
        dim: Channels.
        depth: Scan blocks.
        d_state: States per channel of the scans.
        scan: Name of a scan order.
        drop_path: Stochastic depth of each scan block.
        norm_layer: Norm before the scans.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        d_state: int = 16,
        scan: str = "hilbert",
        drop_path: Sequence[float] | None = None,
        norm_layer: Any = _norm,
    ):
        super().__init__()
        rank = math.ceil(dim / 16)
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(
                    norm_layer(dim),
                    SS2D(dim, 2 * dim, d_state, rank, scan, gated=True, conv_bias=True, norm_layer=_norm),
                    drop_path=rate,
                )
                for rate in drop_path or [0.0] * depth
            )
        )
        self.local5 = _branch(dim, 5)
        self.local7 = _branch(dim, 7)
        self.join = nn.Conv2d(3 * dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """A map (b, h, w, dim) to a map of the same shape."""
        image = x.permute(0, 3, 1, 2)
        maps = [self.blocks(x).permute(0, 3, 1, 2), self.local5(image), self.local7(image)]
        return x + self.join(torch.cat(maps, 1)).permute(0, 2, 3, 1)


def _branch(dim: int, kernel: int) -> nn.Sequential:
    convs = (
        nn.Conv2d(dim, dim, 1),
        nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False),
        nn.Conv2d(dim, dim, 1),
    )
    return nn.Sequential(*(part for conv in convs for part in (conv, nn.InstanceNorm2d(dim), nn.SiLU())))


def _local_name(match) -> str:
    index = {"1b": 0, match[2]: 3, "1a": 6}[match[1]]
    return f"local{match[2]}.{index}."


BLOCK_NAMES = (
    (r"(?<![a-z])conv(1b|1a|5|7)(5|7)\.0\.", _local_name),
    (r"(?<![a-z])finalconv11\.", "join."),
    (r"(?<![a-z])smm_blocks\.", "blocks."),
    (r"\.ln_1\.", ".norm1."),
    (r"\.self_attention\.", ".mixer."),
    *SS2D_NAMES,
)


class _Stage(nn.Module):
    def __init__(self, expand: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.expand = expand
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.expand(x))


class MambaADDecoder(VisionModel):
    """The student of MambaAD (arXiv:2404.06564): rebuilds a teacher's maps from a fused one, of any size.

    Args:
        dims: Channels of each stage, coarsest first, each half of the one before.
        depths: Scan blocks of each stage, multiples of 3 (in threes) or even (in pairs).
        d_state: States per channel of the scans.
        scan: Name of a scan order of one route; published is "hilbert".
        num_directions: 8, 4 or 2 directions in which the order is read.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    undecayed = (".ssm.D",)
    layout = Layout(
        own=r"^stages\.",
        tell_tale=(r"(^|\.)layers_up\.\d+\.blocks\.\d+\.smm_blocks\.",),
        drop=r"^(net_t|mff_oce)\.|\.scans\.index_flat(_inv)?$",
        names=(
            (r"^net_s\.", ""),
            (r"^layers_up\.(\d+)\.upsample\.", r"stages.\1.expand."),
            (r"^layers_up\.", "stages."),
            *BLOCK_NAMES,
        ),
    )

    def __init__(
        self,
        dims: Sequence[int] = (512, 256, 128, 64),
        depths: Sequence[int] = (3, 4, 6, 3),
        d_state: int = 16,
        scan: str = "hilbert",
        num_directions: int = 8,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        if len(dims) != len(depths) or any(a != 2 * b for a, b in zip(dims, dims[1:], strict=False)):
            raise ValueError(f"dims must halve and be as many as depths, got {tuple(dims)} and {tuple(depths)}")
        if any(depth % 3 and depth % 2 or depth < 1 for depth in depths):
            raise ValueError(f"depths must be multiples of 3 or even, got {tuple(depths)}")
        self.dims = tuple(dims)
        self.base = scan
        name = directions(scan, num_directions)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.stages = nn.ModuleList()
        for i, (dim, rate) in enumerate(zip(dims, rates, strict=True)):
            size = 2 if len(rate) % 3 else 3
            parts = [rate[j : j + size] for j in range(0, len(rate), size)]
            expand = PatchExpand(2 * dim, dim, norm_layer=_norm) if i else nn.Identity()
            blocks = [LocalityEnhancedBlock(dim, size, d_state, name, part) for part in parts]
            self.stages.append(_Stage(expand, blocks))
        self.init_weights(needs_reset=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """A fused map (b, dims[0], h, w) to the outputs of all stages but the first, finest first, (b, c, h', w').

        Raises:
            ValueError: another number of channels.
        """
        if x.ndim != 4 or x.shape[1] != self.dims[0]:
            raise ValueError(f"the decoder reads maps (b, {self.dims[0]}, h, w), got {tuple(x.shape)}")
        x = x.permute(0, 2, 3, 1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.permute(0, 3, 1, 2))
        return maps[:0:-1]

    @staticmethod
    def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: "MambaADDecoder") -> dict[str, Tensor]:
        """Convert a published file; the scan tables that it stores must be those of the model's order.

        Raises:
            CheckpointError: the weights do not fill the model exactly, or were trained with another order.
        """
        source = unwrap(state_dict)
        for name, table in source.items():
            if not name.endswith(".scans.index_flat") or table.is_meta:
                continue
            side = math.isqrt(table.numel())
            ours = (fn(model.base, side, side)[0] for fn in (scan_table, inverse_table))
            if not any(torch.equal(table.flatten().long().cpu(), order.long()) for order in ours):
                raise CheckpointError(f"the file was trained with another scan order than {model.base!r}: {name}")
        return VisionModel.checkpoint_filter_fn(source, model)


class MambaADFusion(VisionModel):
    """MambaAD's fusion of three maps of a ResNet-34 to one; names are the published ones.

    Args:
        channels: Channels of the maps, finest first, each twice the one before.
    """

    layout = Layout(own=r"^bn_layer\.", names=((r"^mff_oce\.", ""),), drop=r"^net_[ts]\.")
    linear_std = None

    def __init__(self, channels: Sequence[int] = (64, 128, 256)):
        super().__init__()
        if len(channels) != 3 or any(b != 2 * a for a, b in zip(channels, channels[1:], strict=False)):
            raise ValueError(f"channels must be those of 3 maps, each twice the one before, got {tuple(channels)}")
        a, b, c = channels
        self.channels = [a, b, c]
        self.conv1, self.bn1 = nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b)
        self.conv21, self.bn21 = nn.Conv2d(b, b, 1), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = nn.Conv2d(b, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c)
        self.conv31, self.bn31 = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)
        self.convf, self.bnf = nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)
        down = nn.Sequential(nn.Conv2d(c, 2 * c, 1, 2, bias=False), nn.BatchNorm2d(2 * c))
        self.bn_layer = nn.Sequential(
            Bottleneck(c, c // 2, stride=2, downsample=down), *(Bottleneck(2 * c, c // 2) for _ in range(2))
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (b, channels[i], h_i, w_i), finest first, halving, to (b, 2 channels[2], h_2 / 2, w_2 / 2).

        Raises:
            ValueError: other maps.
        """
        if [m.shape[1] for m in maps] != self.channels:
            raise ValueError(f"expected maps of {self.channels} channels, got {[m.shape[1] for m in maps]}")
        first = F.relu(self.bn1(self.conv1(maps[0])))
        second = F.relu(self.bn21(self.conv21(maps[1]))) + first
        y = F.relu(self.bn2(self.conv2(second))) + F.relu(self.bn31(self.conv31(maps[2])))
        return self.bn_layer(F.relu(self.bnf(self.convf(y))))
