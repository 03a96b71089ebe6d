"""Features of regions: RoIAlign (arXiv:1703.06870, section 3) and RoIPool (arXiv:1504.08083, section 2.1).

Regions are (n, 5): the number of the image, then x1, y1, x2, y2 in pixels of the image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._precision import widen

__all__ = ["roi_align_backward", "roi_align_forward", "roi_pool_backward", "roi_pool_forward"]

_MAXIMUM = 0  # pool_mode; 1 is the mean
_VALUES_AT_ONCE = 2**26  # gathered by RoIPool


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Mean or maximum of bilinear samples in each bin of each region.

    Args:
        input: Maps (b, c, h, w).
        rois: (n, 5).
        output: (n, c, aligned_height, aligned_width); receives the result.
        argmax_y: As output, for the maximum; receives the row of the sample in its bin, for the backward.
        argmax_x: Likewise the column.
        aligned_height: Rows of bins.
        aligned_width: Columns of bins.
        spatial_scale: Pixels of the map per pixel of the image.
        sampling_ratio: Samples per bin and axis; 0 for about one per pixel of the map.
        pool_mode: 0 for the maximum, 1 for the mean.
        aligned: Pixel centres lie at half numbers; otherwise at whole ones, and regions are at least a pixel wide.
    """
    maps, size = widen(input), (aligned_height, aligned_width)
    rois = rois.to(maps.dtype)
    if pool_mode != _MAXIMUM:
        output.copy_(_sample(maps, rois, spatial_scale, size, sampling_ratio, aligned))
        return
    for grid, chosen in _by_grid(rois, spatial_scale, size, sampling_ratio, aligned):
        # as many bins as samples: each bin is one sample
        rows, columns = size[0] * grid[0], size[1] * grid[1]
        samples = _sample(maps, rois[chosen], spatial_scale, (rows, columns), 1, aligned)
        best, index = F.max_pool2d(samples, grid, return_indices=True)
        output[chosen] = best.to(output.dtype)
        # numbers this small are exact in any precision, unlike coordinates
        argmax_y[chosen] = (index // columns % grid[0]).to(argmax_y.dtype)
        argmax_x[chosen] = (index % columns % grid[1]).to(argmax_x.dtype)


def _sample(maps: Tensor, rois: Tensor, scale: float, size: tuple[int, int], ratio: int, aligned: bool) -> Tensor:
    return torch.ops.torchvision.roi_align(maps, rois, scale, *size, ratio, aligned)


def _extent(rois: Tensor, scale: float, aligned: bool) -> tuple[Tensor, Tensor]:
    """Start and size of regions on the map, each (n, 2) as x, y."""
    start = rois[:, 1:3] * scale - (0.5 if aligned else 0)
    size = rois[:, 3:5] * scale - (0.5 if aligned else 0) - start
    return start, size if aligned else size.clamp(min=1)


def _by_grid(rois: Tensor, scale: float, bins: tuple[int, int], ratio: int, aligned: bool):
    """Samples per bin (rows, columns), with the numbers of the regions that have so many."""
    if ratio > 0:
        yield (ratio, ratio), torch.arange(len(rois), device=rois.device)
        return
    extent = _extent(rois, scale, aligned)[1]
    grids = (extent / extent.new_tensor([bins[1], bins[0]])).ceil().long().clamp(min=1)
    for columns, rows in grids.unique(dim=0).tolist():
        yield (rows, columns), (grids == grids.new_tensor([columns, rows])).all(dim=1).nonzero()[:, 0]


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward`, written to `grad_input` (b, c, h, w)."""
    grad, shape, bins = widen(grad_output), grad_input.shape, (aligned_height, aligned_width)
    rois = rois.to(grad.dtype)
    if pool_mode != _MAXIMUM:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(grad, rois, spatial_scale, *bins, *shape, sampling_ratio, aligned)
        )
        return
    total = grad.new_zeros(shape).flatten()
    start, extent = _extent(rois, spatial_scale, aligned)
    for grid, chosen in _by_grid(rois, spatial_scale, bins, sampling_ratio, aligned):
        taps = [
            _taps(start[chosen, axis], extent[chosen, axis], best[chosen], grid[place], bins[place], place, shape)
            for axis, place, best in ((1, 0, argmax_y), (0, 1, argmax_x))
        ]
        image = rois[chosen, 0].long().view(-1, 1, 1, 1)
        plane = image * shape[1] + torch.arange(shape[1], device=grad.device).view(-1, 1, 1)
        for row, row_weight in taps[0]:
            for column, column_weight in taps[1]:
                place = (plane * shape[2] + row) * shape[3] + column
                total.index_add_(0, place.flatten(), (grad[chosen] * row_weight * column_weight).flatten())
    grad_input.copy_(total.view(shape))


def _taps(start: Tensor, extent: Tensor, best: Tensor, grid: int, bins: int, place: int, shape: torch.Size):
    """Along rows (place 0) or columns (1): the two pixels that each best sample reads, with their weights."""
    length = shape[2 + place]
    number = torch.arange(bins, device=start.device).view((-1, 1) if place == 0 else (1, -1))
    sample = number * grid + best.to(start.dtype)
    at = start.view(-1, 1, 1, 1) + (sample + 0.5) * (extent / (bins * grid)).view(-1, 1, 1, 1)
    inside = (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    low = at.floor()
    high = (low + 1).clamp(max=length - 1)
    return [(low.long(), (1 - (at - low)) * inside), (high.long(), (at - low) * inside)]


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Maximum over each bin of each region; the last pixel is part of it, and edges of bins are rounded outwards.

    torchvision rounds the region first, mmcv does not, so its kernel would give other bins.

    Args:
        input: Maps (b, c, h, w).
        rois: (n, 5).
        output: (n, c, pooled_height, pooled_width); receives the result, 0 for bins without a pixel.
        argmax: Like output, int32; receives the place in the map, h * w numbers in rows, or -1.
        pooled_height: Rows of bins.
        pooled_width: Columns of bins.
        spatial_scale: Pixels of the map per pixel of the image.
    """
    maps, bins = widen(input), (pooled_height, pooled_width)
    height, width = maps.shape[2:]
    rois = rois.to(maps.dtype)
    start = rois[:, 1:3] * spatial_scale
    extent = (rois[:, 3:5] + 1) * spatial_scale - start
    wrong = (extent <= 0).any(dim=1)
    rows, in_rows = _bins(start[:, 1], extent[:, 1], pooled_height, height)
    columns, in_columns = _bins(start[:, 0], extent[:, 0], pooled_width, width)
    per_region = max(1, maps.shape[1] * rows[0].numel() * columns[0].numel()) if len(rois) else 1
    for part in torch.arange(len(rois), device=rois.device).split(max(1, _VALUES_AT_ONCE // per_region)):
        image = rois[part, 0].long().view(-1, 1, 1, 1, 1)
        row, column = rows[part][..., None, None], columns[part][:, None, None]
        values = maps.permute(0, 2, 3, 1)[image, row, column]  # region, row of bins, row, column of bins, column, c
        there = in_rows[part][..., None, None] & in_columns[part][:, None, None]
        there = there & ~wrong[part].view(-1, 1, 1, 1, 1)
        values = values.masked_fill(~there[..., None], -torch.inf).permute(0, 5, 1, 3, 2, 4).flatten(4)
        best, index = values.max(dim=-1)
        place = (row * width + column).permute(0, 1, 3, 2, 4).flatten(3)  # region, *bins, pixel
        place = place[:, None].expand(-1, maps.shape[1], -1, -1, -1).gather(-1, index[..., None])[..., 0]
        empty = ~there.permute(0, 1, 3, 2, 4).flatten(3).any(dim=-1)[:, None]
        assert best.shape[2:] == bins
        output[part] = best.masked_fill(empty, 0).to(output.dtype)
        argmax[part] = place.masked_fill(empty, -1).to(argmax.dtype)


def _bins(start: Tensor, extent: Tensor, bins: int, length: int) -> tuple[Tensor, Tensor]:
    """Pixels (n, bins, most) of each bin along an axis, and which of them belong to it."""
    number = torch.arange(bins, device=start.device, dtype=start.dtype)
    side = (extent / bins)[:, None]
    first = (number * side + start[:, None]).floor().clamp(0, length)
    last = ((number + 1) * side + start[:, None]).ceil().clamp(0, length)
    most = max(1, int((last - first).max())) if len(start) else 1
    pixels = first[..., None] + torch.arange(most, device=start.device)
    return pixels.long().clamp(max=length - 1), pixels < last[..., None]


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of `roi_pool_forward`, written to `grad_input` (b, c, h, w)."""
    grad = widen(grad_output).contiguous()
    rois = rois.to(grad.dtype)
    total = torch.ops.torchvision._roi_pool_backward(
        grad, rois, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape
    )
    grad_input.copy_(total)
