"""Deformable sampling (DCNv4, arXiv:2401.06197, section 3.1), and what torchvision's deformable convolution costs."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula
from torchvision.ops import deform_conv2d

TAPS = 9


def deformable_sampling(x: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
    """Weighted sum of nine samples around each place (DCNv4, arXiv:2401.06197, section 3.1; no softmax).

    Samples between places are bilinear; places outside the map count as zero.

    Args:
        x: Maps, (b, h, w, d); computed in float32, or float64 for float64.
        offset_mask: (b, h, w, 27 * groups or more): for each group of channels nine offsets (columns, rows), then nine
            weights. Samples go column by column; what follows the groups is not read.
        groups: Groups of channels that are sampled at the same places.

    Returns:
        (b, h, w, d), in the dtype of `x`.

    Raises:
        ValueError: the shapes do not fit each other, or the groups do not divide the channels.
    """
    if has_torch_function_variadic(x, offset_mask):
        return handle_torch_function(deformable_sampling, (x, offset_mask), x, offset_mask, groups)
    if x.ndim != 4 or x.shape[3] % groups:
        raise ValueError(f"x must be (b, h, w, channels), the channels a multiple of {groups}, got {tuple(x.shape)}")
    if offset_mask.shape[:3] != x.shape[:3] or offset_mask.shape[3] < 3 * TAPS * groups:
        raise ValueError(
            f"offset_mask must be (b, h, w, {3 * TAPS * groups} or more) of the map {tuple(x.shape[:3])}, got "
            f"{tuple(offset_mask.shape)}"
        )
    dtype, x = x.dtype, (x if x.dtype == torch.float64 else x.float()).permute(0, 3, 1, 2)
    parts = offset_mask[..., : 3 * TAPS * groups].to(x.dtype).unflatten(-1, (groups, 3 * TAPS))
    offset, weight = parts.split((2 * TAPS, TAPS), dim=-1)
    # torchvision's samples go row by row and name the row first
    offset = offset.unflatten(-1, (3, 3, 2)).transpose(-3, -2).flip(-1).flatten(3).permute(0, 3, 1, 2)
    weight = weight.unflatten(-1, (3, 3)).transpose(-2, -1).flatten(3).permute(0, 3, 1, 2)
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        taps = x.new_ones(x.shape[1], 1, 3, 3)
        y = deform_conv2d(x.contiguous(), offset.contiguous(), taps, padding=1, mask=weight.contiguous())
    else:
        y = _sampling_formula(x, offset, weight, groups)  # torchvision's operator knows no transforms of torch.func
    return y.permute(0, 2, 3, 1).to(dtype)


def deformable_sampling_reference(x: Tensor, offset_mask: Tensor, groups: int) -> Tensor:
    """The definition, sample by sample; one Python iteration per place, group and sample."""
    b, height, width, d = x.shape
    channels = d // groups
    y = torch.zeros_like(x)
    for image in range(b):
        for i in range(height):
            for j in range(width):
                for group in range(groups):
                    numbers = offset_mask[image, i, j, 3 * TAPS * group : 3 * TAPS * (group + 1)].tolist()
                    part = slice(group * channels, (group + 1) * channels)
                    for tap in range(TAPS):
                        column = j + tap // 3 - 1 + numbers[2 * tap]
                        row = i + tap % 3 - 1 + numbers[2 * tap + 1]
                        for k in range(height):
                            for m in range(width):
                                share = max(0.0, 1 - abs(row - k)) * max(0.0, 1 - abs(column - m))
                                y[image, i, j, part] += numbers[2 * TAPS + tap] * share * x[image, k, m, part]
    return y


def _sampling_formula(x: Tensor, offset: Tensor, weight: Tensor, groups: int) -> Tensor:
    """`deform_conv2d` with taps of one, of PyTorch's operators: slower, and it can be differentiated further."""
    height, width = x.shape[-2:]
    offset = offset.unflatten(1, (groups, TAPS, 2))
    steps = torch.arange(TAPS, device=x.device)
    rows = offset[:, :, :, 0] + (steps // 3 - 1).view(-1, 1, 1) + torch.arange(height, device=x.device).view(-1, 1)
    columns = offset[:, :, :, 1] + (steps % 3 - 1).view(-1, 1, 1) + torch.arange(width, device=x.device)
    x = x.unflatten(1, (groups, -1)).flatten(3)
    total: Tensor | None = None
    for i in (0, 1):
        for j in (0, 1):
            row, column = rows.floor() + i, columns.floor() + j
            share = (1 - (rows - row).abs()) * (1 - (columns - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().flatten(2)
            found = x.gather(3, index.unsqueeze(2).expand(-1, -1, x.shape[2], -1))
            part = (share * inside * weight.unflatten(1, (groups, TAPS))).flatten(2).unsqueeze(2) * found
            total = part if total is None else total + part
    assert total is not None
    return total.unflatten(3, (TAPS, height, width)).sum(3).flatten(1, 2)


def deform_conv_flops(b: int, c: int, taps: int, out_channels: int, in_channels: int, places: int, masked: bool) -> int:
    """2 (b places c taps (4 + 1 with weights) + b places out_channels in_channels taps).

    Four multiply-adds for a bilinear sample of each channel and one for its weight, then the convolution, each of whose
    outputs reads `in_channels` channels.
    """
    return 2 * b * places * taps * (c * (4 + masked) + out_channels * in_channels)


@register_flop_formula(torch.ops.torchvision.deform_conv2d)
def _deform_conv_flops(x, weight, offset, mask, bias, *rest, out_shape=None, **kwargs) -> int:
    taps, places = weight[2] * weight[3], offset[2] * offset[3]
    return deform_conv_flops(x[0], x[1], taps, weight[0], weight[1], places, bool(rest[-1]))
