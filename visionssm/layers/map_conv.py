"""Convolutions of maps with contiguous channels."""

from torch import Tensor, nn


class MapConv2d(nn.Conv2d):
    """`nn.Conv2d` whose maps are (b, h, w, c), in and out; arguments as there."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, in_channels) to (b, h', w', out_channels)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
