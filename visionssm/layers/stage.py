"""A stage of a hierarchical model."""

from collections.abc import Sequence

from timm.models import checkpoint_seq
from torch import Tensor, nn


class Stage(nn.Module):
    """Downsampling (an identity in the first stage), then blocks; optionally recomputes the blocks in the backward.

    Args:
        downsample: Halves the map.
        blocks: Blocks that keep its shape.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)
