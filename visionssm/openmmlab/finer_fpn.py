"""A feature pyramid for backbones whose first map is coarse: finer levels by transposed convolutions."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class FinerFPN(BaseModule):
    """A feature pyramid (arXiv:1612.03144) with levels of twice and four times the first map's resolution, and so on.

    As the detectors of MobileMamba (arXiv:2411.15941) and EfficientViM (arXiv:2411.15241) have it, whose maps have
    strides 16, 32 and 64.

    Args:
        in_channels: Channels of each map.
        out_channels: Channels of every level.
        num_finer: Levels finer than the first map.
        num_coarser: Levels coarser than the last map, each every second place of the one before.
        init_cfg: mmengine's.

    Raises:
        ValueError: there is no finer level, or `in_channels` is no list.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_finer: int = 2,
        num_coarser: int = 0,
        init_cfg: dict | None = None,
    ):
        super().__init__(init_cfg)
        if isinstance(in_channels, int) or num_finer < 1:
            raise ValueError(
                "FinerFPN reads several maps and makes at least one finer level, got "
                f"in_channels={in_channels}, num_finer={num_finer}; without finer levels use FPN"
            )
        self.in_channels = list(in_channels)
        self.out_channels = out_channels
        self.num_coarser = num_coarser
        self.num_outs = num_finer + len(self.in_channels) + num_coarser
        self.laterals = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in self.in_channels)
        self.enlarge = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(out_channels, out_channels, 2, stride=2), nn.ReLU())
            for _ in range(num_finer)
        )
        self.outputs = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in range(self.num_outs - num_coarser)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps (b, in_channels[i], h, w), finest first, to `num_outs` levels (b, out_channels, ...), finest first."""
        levels = [lateral(x) for lateral, x in zip(self.laterals, inputs, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], size=levels[i - 1].shape[2:], mode="nearest")
        for enlarge in self.enlarge:
            levels.insert(0, enlarge(levels[0]))
        levels = [output(x) for output, x in zip(self.outputs, levels, strict=True)]
        for _ in range(self.num_coarser):
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)
