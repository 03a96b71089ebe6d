"""Convolutions of maps with contiguous channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._timm_compat import register_notrace_function


class MapConv2d(nn.Conv2d):
    """`nn.Conv2d` whose maps are (b, h, w, c), in and out; arguments as there."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, in_channels) to (b, h', w', out_channels)."""
        if self.groups > 1 or self.padding_mode != "zeros" or isinstance(self.padding, str) or max(self.dilation) > 1:
            return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return _convolve(x, self.weight, self.bias, self.stride, self.padding)


@register_notrace_function  # fx cannot follow a decision on sizes
def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """The convolution of a map (b, h, w, c).

    On a CPU a convolution brings its weights into another layout at every call. Where they are more than eight times
    the map's patches, it is a matrix product of these, which reads the weights as they lie.
    """
    sizes = zip(x.shape[1:3], padding, weight.shape[2:], stride, strict=True)
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.device.type != "cpu" or type(x) is not Tensor:
        outweighed = False
    elif type(weight) not in (nn.Parameter, Tensor):  # quantised, say
        outweighed = False
    else:
        rows, columns = ((size + 2 * around - kernel) // step + 1 for size, around, kernel, step in sizes)
        # no patches are left to the convolution, which says why
        outweighed = min(len(x), rows, columns) > 0 and 8 * len(x) * rows * columns < len(weight)
    if not outweighed:
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding).permute(0, 2, 3, 1)
    x = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    patches = x.unfold(1, weight.shape[2], stride[0]).unfold(2, weight.shape[3], stride[1])
    return F.linear(patches.flatten(3), weight.flatten(1), bias)
