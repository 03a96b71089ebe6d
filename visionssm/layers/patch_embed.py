"""Patch embedding of plain models: from an image (b, c, h, w) to a map (b, rows, columns, dim)."""

import torch.nn.functional as F
from timm.layers import lecun_normal_
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """One convolution; patches overlap if the stride is smaller than they are.

    Args:
        in_chans: Channels of the image.
        dim: Channels out.
        patch_size: Side of a patch.
        stride: Distance of neighbouring patches; `patch_size` if None.
        pad: Fill incomplete patches at the right and the bottom with zeros; else they are cut.
        bias: Bias of the convolution.
    """

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch_size: int = 16,
        stride: int | None = None,
        pad: bool = False,
        bias: bool = True,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.patch_size = patch_size
        self.stride = patch_size if stride is None else stride
        if not 1 <= self.stride <= patch_size:
            raise ValueError(f"stride must be from 1 to the patch size {patch_size}, got {self.stride}")
        self.pad = pad
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=self.stride, bias=bias, **dd)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """LeCun's normal weights, no bias."""
        lecun_normal_(self.proj.weight)
        if self.proj.bias is not None:
            nn.init.zeros_(self.proj.bias)

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the map of an image.

        Raises:
            ValueError: the image is smaller than a patch.
        """
        if not self.pad and min(height, width) < self.patch_size:
            raise ValueError(
                f"an image of {height} x {width} is smaller than a patch of {self.patch_size} x {self.patch_size}"
            )
        if self.pad:
            return -(-height // self.stride), -(-width // self.stride)
        return (height - self.patch_size) // self.stride + 1, (width - self.patch_size) // self.stride + 1

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_chans, h, w) to (b, rows, columns, dim)."""
        if self.pad:
            overlap = self.patch_size - self.stride
            x = F.pad(x, (0, overlap + -x.shape[3] % self.stride, 0, overlap + -x.shape[2] % self.stride))
        return self.proj(x).permute(0, 2, 3, 1)
