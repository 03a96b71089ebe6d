"""Minimum spanning trees of pixel grids (GrootVL, arXiv:2406.02395, section 3.2)."""

import numpy as np
import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .doubling import spanning_tree_doubling


def spanning_tree(down: Tensor, right: Tensor) -> Tensor:
    """The minimum spanning tree of each image's grid of pixels, rooted at the top left pixel.

    Of equal weights the edge listed first wins: edges to the pixel below before those to the pixel on the right, row by
    row. The choice of a tree has no gradient.

    Args:
        down: Weight of the edge from each pixel to the one below, (b, H - 1, W); any floating dtype.
        right: Weight of the edge from each pixel to the one on its right, (b, H, W - 1), dtype and device of `down`.

    Returns:
        The parent of each pixel, row by row, (b, H * W), int64 on the device of `down`; -1 for the root.

    Raises:
        ValueError: shapes or devices do not belong together.
        TypeError: a dtype is no floating one, or they differ.
    """
    if has_torch_function_variadic(down, right):
        return handle_torch_function(spanning_tree, (down, right), down, right)
    if down.ndim != 3 or right.ndim != 3:
        raise ValueError(
            f"down must be (b, H - 1, W) and right (b, H, W - 1), got {tuple(down.shape)} and {tuple(right.shape)}"
        )
    b, height, width = down.shape[0], down.shape[1] + 1, down.shape[2]
    if right.shape != (b, height, width - 1):
        raise ValueError(
            f"right has shape {tuple(right.shape)} but down's {height} x {width} pixels want {(b, height, width - 1)}"
        )
    if not down.is_floating_point() or down.dtype != right.dtype:
        raise TypeError(f"down and right must share a floating dtype, got {down.dtype} and {right.dtype}")
    if down.device != right.device:
        raise ValueError(f"right is on {right.device} but down is on {down.device}")
    return torch.ops.visionssm.spanning_tree(down.detach(), right.detach())


@torch.library.custom_op("visionssm::spanning_tree", mutates_args=())
def _spanning_tree(down: Tensor, right: Tensor) -> Tensor:
    if down.device.type != "cpu":
        return spanning_tree_doubling(down, right)
    # here, and not above: SciPy's sparse matrices take longer to import than the whole of this package
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree

    b, height, width = right.shape[0], right.shape[1], down.shape[2]
    L = height * width
    # SciPy's order among equal weights is its own, so it is given ranks
    order = torch.cat([down.flatten(1), right.flatten(1)], 1).argsort(dim=1, stable=True).cpu().numpy()
    ranks = np.empty(order.shape)
    np.put_along_axis(ranks, order, np.arange(1.0, order.shape[1] + 1)[None], 1)

    pixels = np.arange(L).reshape(height, width)
    first = np.concatenate([pixels[:-1].ravel(), pixels[:, :-1].ravel()])
    second = np.concatenate([pixels[1:].ravel(), pixels[:, 1:].ravel()])
    images = np.arange(b)[:, None] * L
    # all images at once, held together by one more vertex below their roots
    top, roots = b * L, images.ravel()
    weights = np.concatenate([ranks.ravel(), np.full(b, 0.5)])
    rows = np.concatenate([(first + images).ravel(), roots])
    columns = np.concatenate([(second + images).ravel(), np.full(b, top)])
    tree = minimum_spanning_tree(csr_array((weights, (rows, columns)), shape=(top + 1, top + 1)))
    _, parent = breadth_first_order(tree, top, directed=False)
    parent = parent[:top].reshape(b, L) - images
    parent[:, 0] = -1
    return torch.from_numpy(parent).to(down.device)


@_spanning_tree.register_fake
def _spanning_tree_fake(down: Tensor, right: Tensor) -> Tensor:
    return down.new_empty((right.shape[0], right.shape[1] * down.shape[2]), dtype=torch.int64)


@torch._decomp.register_decomposition(torch.ops.visionssm.spanning_tree.default)
def _decompose(down: Tensor, right: Tensor) -> Tensor:
    """What the ONNX exporter puts in the place of the operator."""
    return spanning_tree_doubling(down, right)
