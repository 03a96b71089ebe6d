"""What all restoration models share: any input size, and early errors."""

import torch
from torch import Tensor, nn

from ..models._builder import VisionModel


class RestorationModel(VisionModel):
    """Base of the restoration models: images to images.

    Args:
        in_chans: Channels of the images.
        scale: How many times larger the output's sides are.
        size_multiple: What the sides must be a multiple of.
        pad: Mirror the images at the far sides to such sizes and crop the output; else other sizes are refused.
    """

    def __init__(self, in_chans: int, scale: int, size_multiple: int = 1, pad: bool = True):
        super().__init__()
        if in_chans < 1:
            raise ValueError(f"in_chans must be at least 1, got {in_chans}")
        if scale < 1 or (scale & (scale - 1) and scale != 3):
            raise ValueError(f"scale must be 3 or a power of 2, got {scale}")
        self.in_chans = in_chans
        self.scale = scale
        self.size_multiple = size_multiple
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) with values in [0, 1] to images (b, c, scale h, scale w).

        Raises:
            ValueError: another number of axes or channels, or a size that the model cannot take.
        """
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(
                f"{type(self).__name__} reads floating-point images (b, c, h, w), got {tuple(x.shape)} of {x.dtype}"
            )
        if x.shape[1] != self.in_chans:
            raise ValueError(
                f"{type(self).__name__} was built for {self.in_chans} channels, got images of {x.shape[1]}; "
                "set in_chans"
            )
        height, width = x.shape[2:]
        down, right = -height % self.size_multiple, -width % self.size_multiple
        if not down and not right:
            return self.restore(x)
        if not self.pad:
            raise ValueError(
                f"sides must be multiples of {self.size_multiple}, got {height} x {width}; pad=True mirrors and crops"
            )
        if down > height or right > width:
            raise ValueError(
                f"{type(self).__name__} mirrors images to multiples of {self.size_multiple}, which needs sides of at "
                f"least {(self.size_multiple + 1) // 2}; got {height} x {width}"
            )
        x = torch.cat([x, x[:, :, height - down :].flip(2)], 2)
        x = torch.cat([x, x[:, :, :, width - right :].flip(3)], 3)
        return self.restore(x)[:, :, : height * self.scale, : width * self.scale]

    def restore(self, x: Tensor) -> Tensor:
        """The model itself, for sides that are multiples of `size_multiple`."""
        raise NotImplementedError

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward instead of storing what they need."""
        for module in self.modules():
            if module is not self and hasattr(module, "grad_checkpointing"):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """There is none: an empty module."""
        return nn.Identity()
