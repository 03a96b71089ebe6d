"""Attention to a few samples of several maps (Deformable DETR, arXiv:2010.04159, section 4.1).

mmcv has a form in PyTorch, which it uses on the CPU; here it serves every device.
"""

import torch
from torch import Tensor

from ._precision import widen

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sums of bilinear samples.

    Args:
        value: Maps, one after the other: (b, pixels of all, heads, c).
        spatial_shapes: Height and width (levels, 2) of each.
        level_start_index: Not used.
        sampling_locations: (b, queries, heads, levels, samples, 2), x before y, from 0 to 1.
        attention_weights: (b, queries, heads, levels, samples).
        im2col_step: Not used.

    Returns:
        (b, queries, heads * c).
    """
    return _attend(value, spatial_shapes, sampling_locations, attention_weights).to(value.dtype)


def _attend(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # it imports us

    return multi_scale_deformable_attn_pytorch(widen(value), spatial_shapes.tolist(), widen(locations), widen(weights))


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of `ms_deform_attn_forward`, written to the given tensors."""
    inputs = [widen(x).detach().requires_grad_() for x in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = _attend(inputs[0], spatial_shapes, *inputs[1:])
    grads = torch.autograd.grad(output, inputs, grad_output.to(output.dtype))
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)
