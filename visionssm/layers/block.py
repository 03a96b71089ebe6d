"""The residual block of hierarchical models."""

from timm.layers import DropPath, LayerScale
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + mixer(norm1(x)), then x + mlp(norm2(x)); each perhaps scaled, dropped, and after a position convolution.

    Args:
        norm1: Norm of the mixer's input; None for a mixer that has its own.
        mixer: Keeps the shape of a map.
        norm2: Norm of the MLP's input.
        mlp: None for a block without MLP.
        drop_path: Rate of stochastic depth, of each branch.
        cpe1: Added to the map before the mixer: x + cpe1(x) ("conditional position encoding", arXiv:2102.10882).
        cpe2: The same before the MLP.
        layer_scale: Initial value of a learned scale (dim) of each branch; None for no scale.
        dim: Channels; needed with `layer_scale`.
    """

    def __init__(
        self,
        norm1: nn.Module | None,
        mixer: nn.Module,
        norm2: nn.Module | None = None,
        mlp: nn.Module | None = None,
        drop_path: float = 0.0,
        cpe1: nn.Module | None = None,
        cpe2: nn.Module | None = None,
        layer_scale: float | None = None,
        dim: int | None = None,
        device=None,
        dtype=None,
    ):
        super().__init__()

        def scale() -> nn.Module:
            if layer_scale is None:
                return nn.Identity()
            return LayerScale(dim, layer_scale, device=device, dtype=dtype)

        def drop() -> nn.Module:
            return DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

        self.cpe1 = cpe1
        self.norm1 = nn.Identity() if norm1 is None else norm1
        self.mixer = mixer
        self.scale1 = scale()
        self.drop_path1 = drop()
        if mlp is not None:
            self.cpe2 = cpe2
            self.norm2 = nn.Identity() if norm2 is None else norm2
        self.mlp = mlp  # optimizer states of earlier runs go by this order
        if mlp is not None:
            self.scale2 = scale()
            self.drop_path2 = drop()

    def forward(self, x: Tensor) -> Tensor:
        """A map to a map of the same shape."""
        if self.cpe1 is not None:
            x = x + self.cpe1(x)
        x = x + self.drop_path1(self.scale1(self.mixer(self.norm1(x))))
        if self.mlp is None:
            return x
        if self.cpe2 is not None:
            x = x + self.cpe2(x)
        return x + self.drop_path2(self.scale2(self.mlp(self.norm2(x))))
