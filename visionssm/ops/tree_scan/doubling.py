"""Trees and scans in a number of steps that grows with the logarithm of the vertices, without loops over data.

For exporters that know no custom operator, and for trees on devices that a search on the CPU would keep waiting.
"""

import torch
from torch import Tensor


def spanning_tree_doubling(down: Tensor, right: Tensor) -> Tensor:
    """The parents that `spanning_tree` returns, (b, H * W).

    Boruvka's algorithm finds the edges: every component takes its least edge, and halves their number at least. An
    Euler tour from the root then tells parents: each edge is walked down before it is walked up.
    """
    b, height, width = down.shape[0], right.shape[1], down.shape[2]
    L = height * width
    pixels = torch.arange(L, device=down.device)
    if L == 1:
        return pixels.expand(b, 1) - 1
    grid = pixels.unflatten(0, (height, width))
    first = torch.cat([grid[:-1].flatten(), grid[:, :-1].flatten()])
    second = torch.cat([grid[1:].flatten(), grid[:, 1:].flatten()])
    chosen = _least_edges(torch.cat([down.flatten(1), right.flatten(1)], 1), first, second, L)

    # arcs (pixel, direction): 0 up, 1 left, 2 right, 3 down
    below = chosen[:, : L - width].unflatten(1, (height - 1, width))
    beside = chosen[:, L - width :].unflatten(1, (height, width - 1))
    row, column = torch.zeros_like(chosen[:, None, :1]).expand(b, 1, width), torch.zeros_like(chosen[:, None, :1])
    column = column.expand(b, height, 1)
    exists = torch.stack(
        [
            torch.cat([row, below], 1),
            torch.cat([column, beside], 2),
            torch.cat([beside, column], 2),
            torch.cat([below, row], 1),
        ],
        -1,
    ).flatten(1, 2)
    directions = torch.arange(4, device=down.device)
    steps = torch.stack([pixels - width, pixels - 1, pixels + 1, pixels + width], 1)
    reverse = (steps.clamp(0, L - 1) * 4 + 3 - directions).flatten()  # of arcs that exist
    after = directions.expand(b, L, 4)
    for turn in (3, 2, 1):  # the nearest arc out of a pixel after each, in cyclic order
        turned = (directions + turn) % 4
        after = torch.where(exists[..., turned], turned, after)
    arcs = torch.arange(4 * L, device=down.device)
    leaving = (pixels[:, None] * 4 + after).flatten(1)
    exists = exists.flatten(1)
    following = torch.where(exists, leaving[:, reverse], arcs)
    start = leaving[:, 3:4]  # the first arc out of the root
    following = torch.where(following == start, arcs, following)  # the last one ends the tour
    left = (following != arcs).long()
    for _ in range(int(2 * L).bit_length()):
        left, following = left + left.gather(1, following), following.gather(1, following)
    upwards = exists & (left < left[:, reverse])
    return (upwards * (reverse // 4 + 1)).unflatten(1, (L, 4)).sum(-1) - 1


def _least_edges(weights: Tensor, first: Tensor, second: Tensor, L: int) -> Tensor:
    """Which edges are in the tree, (b, E); of equal weights the first wins."""
    b, E = weights.shape
    edges = torch.arange(E, device=weights.device)
    own = torch.arange(L, device=weights.device)
    label = own.expand(b, L)
    chosen = torch.zeros_like(weights, dtype=torch.bool)
    rounds = int(L - 1).bit_length()
    for _ in range(rounds):
        ends = label[:, first], label[:, second]
        between = ends[0] != ends[1]
        lightest = weights.new_full((b, L), torch.inf)
        for end in ends:
            lightest = lightest.scatter_reduce(1, end, torch.where(between, weights, torch.inf), "amin")
        best = torch.full_like(label, E)
        for end in ends:
            light = between & (weights == lightest.gather(1, end))
            best = best.scatter_reduce(1, end, torch.where(light, edges, E), "amin")
        for end in ends:
            chosen = chosen | (between & (edges == best.gather(1, end)))
        # a component joins the one at the other end of its edge; of two that join each other the lower stays
        edge = best.clamp(max=E - 1)
        other = ends[0].gather(1, edge) + ends[1].gather(1, edge) - own
        joined = torch.where(best < E, other, own)
        joined = torch.where((joined.gather(1, joined) == own) & (own < joined), own, joined)
        for _ in range(rounds):
            joined = joined.gather(1, joined)
        label = joined.gather(1, label)
    return chosen


def tree_scan_doubling(x: Tensor, decay: Tensor, parent: Tensor) -> Tensor:
    """The scan; forward only. In each round every vertex gives to, or takes from, one twice as far away."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    hop = torch.where(parent < 0, 0, parent).unsqueeze(-1)
    weight = decay.to(dtype) * (parent >= 0).unsqueeze(-1)
    h, keep = x.to(dtype), 1 - weight.square()
    hops = []
    for _ in range(int(x.shape[1] - 1).bit_length()):
        hops.append((hop, weight))
        wide = hop.expand_as(weight)
        h = h.scatter_add(1, wide, weight * h)
        weight, hop = weight * weight.gather(1, wide), hop.gather(1, hop)
    h = h * keep
    for hop, weight in hops:
        h = h + weight * h.gather(1, hop.expand_as(weight))
    return h.to(x.dtype)
