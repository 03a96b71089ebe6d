"""Deformable convolution (arXiv:1703.06211), its second version with weights (arXiv:1811.11168), masked convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import widen

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "masked_col2im_forward",
    "masked_im2col_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
]


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **geometry: int
) -> None:
    """Convolution that reads beside the grid.

    Args:
        input: Maps (b, c, h, w).
        weight: (d, c / group, kH, kW).
        offset: (b, 2 * deformable_group * kH * kW, out_h, out_w), y before x.
        output: (b, d, out_h, out_w); receives the result.
        columns: Not used.
        ones: Not used.
        **geometry: mmcv's names for strides, paddings, dilations and groups, see `_first_version`.
    """
    output.copy_(_convolve(input, weight, offset, None, None, _first_version(**geometry)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Gradients of `deform_conv_forward` with respect to the maps and the offsets, added to the given ones."""
    grads = _gradients(gradOutput, input, weight, offset, None, None, _first_version(**geometry))
    gradInput += grads[0].to(gradInput.dtype)
    gradOffset += grads[2].to(gradOffset.dtype)
    # torchvision gives all gradients at once, mmcv asks for the weights' in a second call: it finds them in its buffer
    columns.resize_(weight.shape).copy_(grads[1])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **geometry: int,
) -> None:
    """Gradient of `deform_conv_forward` with respect to the weights, times `scale`, added to `gradWeight`."""
    grad = columns
    if grad.shape != gradWeight.shape:
        zeros = torch.zeros_like(gradWeight)
        grad = _gradients(gradOutput, input, zeros, offset, None, None, _first_version(**geometry))[1]
    gradWeight += scale * grad.to(gradWeight.dtype)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """As `deform_conv_forward`, with a weight for each sample.

    Args:
        input: Maps (b, c, h, w).
        weight: (d, c / group, kernel_h, kernel_w).
        bias: (d,), if with_bias.
        ones: Not used.
        offset: (b, 2 * deformable_group * kernel_h * kernel_w, out_h, out_w), y before x.
        mask: (b, deformable_group * kernel_h * kernel_w, out_h, out_w).
        output: (b, d, out_h, out_w); receives the result.
        columns: Not used.
        with_bias: Whether there is a bias.
        **geometry: mmcv's names for strides, paddings, dilations and groups, see `_second_version`.
    """
    output.copy_(_convolve(input, weight, offset, mask, bias if with_bias else None, _second_version(**geometry)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Gradients of `modulated_deform_conv_forward`, added to the given ones."""
    bias_used = bias if with_bias else None
    grads = _gradients(grad_output, input, weight, offset, mask, bias_used, _second_version(**geometry))
    targets = [grad_input, grad_weight, grad_offset, grad_mask, *([grad_bias] if with_bias else [])]
    for target, grad in zip(targets, grads, strict=False):
        target += grad.to(target.dtype)


def _first_version(
    *, kW, kH, dW, dH, padW, padH, dilationW, dilationH, group, deformable_group, im2col_step
) -> tuple[int, ...]:
    """torchvision's geometry; the kernel's size is that of the weight, and torchvision chooses its own steps."""
    return dH, dW, padH, padW, dilationH, dilationW, group, deformable_group


def _second_version(
    *,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    group,
    deformable_group,
) -> tuple[int, ...]:
    """torchvision's geometry; the kernel's size is that of the weight."""
    return stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group


def _convolve(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, geometry):
    return torch.ops.torchvision.deform_conv2d(*_operands(input, weight, offset, mask, bias, geometry))


def _gradients(grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask, bias, geometry) -> tuple[Tensor, ...]:
    """Gradients with respect to maps, weights, offsets, mask and bias."""
    operands = _operands(input, weight, offset, mask, bias, geometry)
    return torch.ops.torchvision._deform_conv2d_backward(widen(grad).contiguous(), *operands)


def _operands(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None, geometry
) -> tuple:
    """torchvision's arguments: it wants tensors where there is no mask or bias."""
    maps = widen(input)
    none = maps.new_zeros(0)
    rest = [none if x is None else x.to(maps.dtype) for x in (mask, bias)]
    if mask is None:
        rest[0] = maps.new_zeros(len(maps), 1)
    if bias is None:
        rest[1] = maps.new_zeros(len(weight))
    return (maps, weight.to(maps.dtype), offset.to(maps.dtype), *rest, *geometry, mask is not None)


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """What a convolution of stride 1 reads at some places.

    Args:
        im: One map (1, c, h, w).
        mask_h_idx: Rows (n,) of the places.
        mask_w_idx: Columns (n,).
        col: (c * kernel_h * kernel_w, n); receives the values.
        kernel_h: Height of the kernel.
        kernel_w: Width.
        pad_h: Padding by zeros.
        pad_w: Padding by zeros.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows[:, None], columns[None]].reshape(col.shape))


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write columns (channels, n) to n places of a map (1, channels, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col.to(im.dtype)
