"""The tree scan in plain PyTorch: all vertices of one depth, of all images, in one step."""

from typing import NamedTuple

import torch
from torch import Tensor


class Levels(NamedTuple):
    """The vertices of all images, sorted by depth."""

    order: Tensor  # (b * L,), row number of each vertex
    parents: list[Tensor]  # per depth: position of each vertex' parent among the sorted
    sizes: list[int]  # vertices per depth

    def sort(self, *tensors: Tensor) -> list[Tensor]:
        return [x.flatten(0, 1).index_select(0, self.order) for x in tensors]

    def unsort(self, x: Tensor) -> Tensor:
        return torch.empty_like(x).index_copy_(0, self.order, x)


def forward(x: Tensor, decay: Tensor, parent: Tensor) -> Tensor:
    """x, decay (b, L, d) and parent (b, L); returns (b, L, d) in x's dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    levels = sort_by_depth(parent)
    values, decays = (t.to(dtype) for t in levels.sort(x, decay))
    decays[: levels.sizes[0]] = 0
    return levels.unsort(_gather_down(_gather_up(values, decays, levels), decays, levels)).to(x.dtype).view_as(x)


def backward(grad: Tensor, x: Tensor, decay: Tensor, parent: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and decay: the scan is symmetric, so x and the output's gradient walk the tree side by side."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    levels = sort_by_depth(parent)
    values, grads, decays = (t.to(dtype) for t in levels.sort(x, grad, decay))
    roots = levels.sizes[0]
    decays[:roots] = 0
    decays = decays.unsqueeze(1)
    up = _gather_up(torch.stack([values, grads], 1), decays, levels)
    full = _gather_down(up.clone(), decays, levels)
    dx = levels.unsort(full[:, 1])

    # a decay passes what lies below to the parent, and what the parent has from elsewhere to all below
    elsewhere = full.index_select(0, torch.cat(levels.parents)).addcmul_(decays, up, value=-1)
    ddecay = (up * elsewhere.flip(1)).sum(1)
    ddecay[:roots] = 0
    return dx.to(x.dtype).view_as(x), levels.unsort(ddecay).to(decay.dtype).view_as(decay)


def sort_by_depth(parent: Tensor) -> Levels:
    """Check a table of parents, and sort the vertices of all images by their distance to the root."""
    b, L = parent.shape
    low, high = (int(v) for v in torch.aminmax(parent))
    if low < -1 or high >= L:
        raise ValueError(f"parent has entries from {low} to {high}; with {L} vertices they must lie in [-1, {L - 1}]")
    rows = torch.arange(b * L, device=parent.device)
    root = (parent < 0).flatten()
    parents = torch.where(root, rows, (parent + rows[::L, None]).flatten())
    depth, ancestor = (~root).long(), parents
    for _ in range((L - 1).bit_length()):  # the distance to the ancestor doubles until that is the root
        depth, ancestor = depth + depth[ancestor], ancestor[ancestor]
    if not root[ancestor].all():
        raise ValueError("parent has a cycle; from each vertex the parents must lead to a root, marked -1")
    depth, order = depth.sort(stable=True)
    position = torch.empty_like(rows).index_copy_(0, order, rows)
    sizes = torch.bincount(depth).tolist()
    return Levels(order, list(position[parents[order]].split(sizes)), sizes)


def _gather_up(x: Tensor, decay: Tensor, levels: Levels) -> Tensor:
    """Leaves to roots, in place: each vertex adds its decayed sum to its parent's."""
    parts = zip(x.split(levels.sizes), decay.split(levels.sizes), levels.parents, strict=True)
    for part, a, parents in reversed(list(parts)[1:]):
        x.index_add_(0, parents, part * a)
    return x


def _gather_down(up: Tensor, decay: Tensor, levels: Levels) -> Tensor:
    """Roots to leaves, in place: each vertex adds what its parent has from elsewhere."""
    h = up.addcmul_(up, decay.square(), value=-1)
    parts = zip(h.split(levels.sizes), decay.split(levels.sizes), levels.parents, strict=True)
    for part, a, parents in list(parts)[1:]:
        part.addcmul_(a, h.index_select(0, parents))
    return h
