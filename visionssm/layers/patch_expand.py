"""Enlarging a map (b, h, w, c): every pixel becomes a patch, the inverse of merging patches."""

from timm.layers import LayerNorm
from torch import Tensor, nn


def expand_patches(x: Tensor, scale: int) -> Tensor:
    """Lay the channels (row, column, c) of a pixel out as a patch: (b, h, w, scale^2 c) to (b, scale h, scale w, c).

    The offsets are the slow axes of the channels, unlike `torch.nn.functional.pixel_shuffle`, where they are the fast
    ones.
    """
    x = x.unflatten(3, (scale, scale, -1)).permute(0, 1, 3, 2, 4, 5)
    return x.flatten(3, 4).flatten(1, 2)


class PatchExpand(nn.Module):
    """Project, lay every pixel out as a patch, norm (Swin-Unet, arXiv:2105.05537, section 3.5).

    Args:
        dim: Channels in.
        dim_out: Channels out.
        scale: Side of a patch.
        norm_layer: Norm of the enlarged map.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        scale: int = 2,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.scale = scale
        self.expand = nn.Linear(dim, scale**2 * dim_out, bias=False, **dd)
        self.norm = norm_layer(dim_out, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, dim) to (b, scale h, scale w, dim_out)."""
        return self.norm(expand_patches(self.expand(x), self.scale))
