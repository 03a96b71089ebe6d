"""Feature maps as colours: the first three principal components of the channels."""

import torch
from torch import Tensor


def principal_components(features: Tensor, components: int = 3) -> tuple[Tensor, Tensor]:
    """Principal components of a feature map's channels, over its positions.

    Args:
        features: (c, h, w).
        components: How many.

    Returns:
        (components, h, w), each from 0 at its first to 1 at its last percentile of twenty-five (colours do not fade
        for a single outlier), and the share of the variance that each has, (components,). Where there are fewer
        components, 0.5 and 0. The largest entry of a component's direction is positive.
    """
    c, h, w = features.shape
    x = features.detach().double().flatten(1).T
    x = x - x.mean(0)
    _, singular, directions = torch.linalg.svd(x, full_matrices=False)
    variance = singular**2
    kept = min(components, len(singular))
    directions = directions[:kept]
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    maps = (x @ (directions * signs).T).T
    low, high = maps.quantile(0.04, dim=1, keepdim=True), maps.quantile(0.96, dim=1, keepdim=True)
    span = high - low
    scaled = torch.where(span > 0, (maps - low) / span.clamp(min=torch.finfo(span.dtype).tiny), 0.5).clamp(0, 1)
    out = torch.full((components, h * w), 0.5, dtype=torch.float32)
    out[:kept] = scaled.float()
    shares = torch.zeros(components)
    if variance.sum() > 0:
        shares[:kept] = (variance[:kept] / variance.sum()).float()
    return out.view(components, h, w), shares
