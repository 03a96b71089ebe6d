"""A stage of a hierarchical model."""

from collections.abc import Sequence

from timm.models import checkpoint_seq
from torch import Tensor, nn


class Stage(nn.Module):
    """Downsampling (an identity in the first stage), then blocks, then perhaps a norm.

    Args:
        downsample: Halves the map.
        blocks: Blocks that keep its shape; with `grad_checkpointing` they are recomputed in the backward.
        norm: Norm of the stage's output, or None.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return self.norm(x)
