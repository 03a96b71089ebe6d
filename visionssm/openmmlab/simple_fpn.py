"""A feature pyramid from one map (ViTDet, arXiv:2203.16527, section 3)."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn

# so that heads can name it in norm_cfg: ViTDet normalises over channels there
MODELS.register_module("LN2d", module=LayerNorm2d)


@MODELS.register_module()
class SimpleFPN(BaseModule):
    """Maps of 4, 2, 1 and 1/2 times the resolution of a plain backbone's last map, and coarser ones by subsampling.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of every level.
        num_outs: Levels, at least 4.
        init_cfg: mmengine's.

    Raises:
        ValueError: fewer than four levels.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, num_outs: int = 5, init_cfg: dict | None = None):
        super().__init__(init_cfg)
        if num_outs < 4:
            raise ValueError(f"num_outs must be at least 4, got {num_outs}")
        if not isinstance(in_channels, int):
            raise ValueError(f"SimpleFPN reads the last map only, so in_channels must be one number, got {in_channels}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.num_outs = num_outs
        half, quarter = in_channels // 2, in_channels // 4
        self.scales = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                    LayerNorm2d(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ),
                nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )
        self.outputs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for channels in (quarter, half, in_channels, in_channels)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps, of which the last (b, in_channels, h, w) is used, to `num_outs` maps (b, out_channels, ...)."""
        x = inputs[-1]
        maps = [output(scale(x)) for scale, output in zip(self.scales, self.outputs, strict=True)]
        while len(maps) < self.num_outs:
            maps.append(F.max_pool2d(maps[-1], 1, stride=2))
        return tuple(maps)
