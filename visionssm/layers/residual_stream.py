"""The residual stream of plain models: kept in float32, whatever the blocks compute in."""

from typing import Any

from timm.layers import DropPath
from torch import Tensor, nn

from .ssm import state_dtype


class StreamBlock(nn.Module):
    """x + drop_path(mixer(norm(x))).

    Plain Mamba models write this as a pair of streams, where a block adds its predecessor's output (with drop path)
    before its norm; the stream here is the sum of the two after each block.

    Args:
        norm: Norm of the mixer's input.
        mixer: Called as mixer(x, height, width).
        drop_path: Rate of stochastic depth.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float = 0.0):
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(
        self,
        x: Tensor,
        height: int,
        width: int,
        with_hidden: bool = False,
        *kept: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mix the tokens (b, L, d) of a map of height x width; float32 in and out (float64 for a float64 model).

        Args:
            x: The stream.
            height: Rows of the map.
            width: Columns of the map.
            with_hidden: Also return what the mixer gives.
            kept: For a mixer that knows them, which tokens of the map are left, and whether the scan is aligned.

        Returns:
            The stream after the block; with `with_hidden`, also the mixer's output before drop path.
        """
        hidden = state_dtype(self.mixer(self.norm(x.to(self.norm.weight.dtype)), height, width, *kept))
        x = x + self.drop_path(hidden)
        return (x, hidden) if with_hidden else x

    def forward_scored(self, x: Tensor, height: int, width: int, *kept: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward` of a block with Mamba's mixer.

        Returns:
            The stream, the mixer's output, and the merged scan before the last projection (b, L, channels).
        """
        y = self.mixer.merge(self.norm(x.to(self.norm.weight.dtype)), height, width, *kept)
        hidden = state_dtype(self.mixer.project(y))
        return x + self.drop_path(hidden), hidden, y
