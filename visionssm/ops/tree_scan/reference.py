"""The oracles: trees by Kruskal's algorithm, the scan vertex by vertex, differentiable by autograd."""

import torch
from torch import Tensor


def spanning_tree_reference(down: Tensor, right: Tensor) -> Tensor:
    """The parents that `spanning_tree` returns, (b, H * W)."""
    height, width = right.shape[1], down.shape[2]
    edges = [(r * width + c, (r + 1) * width + c) for r in range(height - 1) for c in range(width)]
    edges += [(r * width + c, r * width + c + 1) for r in range(height) for c in range(width - 1)]
    trees = []
    for weights in torch.cat([down.flatten(1), right.flatten(1)], 1).tolist():
        group = list(range(height * width))
        neighbours: list[list[int]] = [[] for _ in group]
        for e in sorted(range(len(edges)), key=weights.__getitem__):  # stable: of equal weights the first edge
            p, q = edges[e]
            if group[p] != group[q]:
                group = [group[p] if g == group[q] else g for g in group]
                neighbours[p].append(q)
                neighbours[q].append(p)
        parent, queue = [-1] * len(group), [0]
        for p in queue:
            for q in neighbours[p]:
                if q != parent[p]:
                    parent[q] = p
                    queue.append(q)
        trees.append(parent)
    return torch.tensor(trees, device=down.device)


def tree_scan_reference(x: Tensor, decay: Tensor, parent: Tensor) -> Tensor:
    """h_i = sum_j S(i, j) x_j: from the leaves to the root, and back down; in float32 or float64."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    images = []
    for values, decays, parents in zip(x.to(dtype), decay.to(dtype), parent.tolist(), strict=True):
        order = [i for i, p in enumerate(parents) if p < 0]
        for p in order:
            order.extend(i for i, q in enumerate(parents) if q == p)
        up = list(values)
        for i in reversed(order):
            if parents[i] >= 0:
                up[parents[i]] = up[parents[i]] + decays[i] * up[i]
        h = list(up)
        for i in order:
            if parents[i] >= 0:
                # what the parent has from elsewhere: all but the part that came from here
                h[i] = up[i] + decays[i] * (h[parents[i]] - decays[i] * up[i])
        images.append(torch.stack(h))
    return torch.stack(images).to(x.dtype)
