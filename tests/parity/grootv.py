"""GrootV against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionssm.ops import spanning_tree, tree_scan

from . import Deviation, compare_operator, reference_input

RECORDS = ()


def _input(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(reference_input(shape, seed))


def _tree(record: dict) -> Iterator[Deviation]:
    guide = _input((2, 4, 5, 6), 5)
    down = torch.exp(-F.cosine_similarity(guide[:, :, :-1], guide[:, :, 1:], dim=1))
    right = torch.exp(-F.cosine_similarity(guide[..., :-1], guide[..., 1:], dim=1))
    yield compare_operator(
        "edge weights", torch.cat([down.flatten(1), right.flatten(1)], 1), np.array(record["edge_weight"])
    )
    parent = spanning_tree(down, right)
    recorded = np.array(record["parent_vertex"])
    recorded[:, 0] = -1  # a root is its own parent there
    yield compare_operator("parents", parent, recorded, 0.0)

    x, decay = _input((2, 4, 30), 6).requires_grad_(), _input((2, 4, 30), 7).sigmoid().requires_grad_()
    y = tree_scan(x.mT, decay.mT, parent).mT
    grads = torch.autograd.grad((y * _input((2, 4, 30), 8)).sum(), [x, decay])
    for name, ours in zip(("output", "grad_feature", "grad_decay"), (y, *grads), strict=True):
        yield compare_operator(name, ours, np.array(record[name]).reshape(2, 4, 30))


OPERATORS = {"grootv-tree": _tree}
