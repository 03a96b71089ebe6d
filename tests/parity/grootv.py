"""GrootV against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.models.grootv import GrootV, TreeMixer
from visionssm.ops import spanning_tree, tree_scan

from . import Case, Deviation, compare_operator, fill, reference_input, registered_names

RECORDS = ("grootv_*",)
FAST = ("grootv_tiny",)


def model_args(config: dict) -> dict:
    """Arguments of our model for those of the original's constructor."""
    names = dict(channels="dims")
    return {names.get(name, name): value for name, value in config.items()}


def build(case: Case) -> GrootV:
    if case.full_size:
        return timm.create_model(registered_names()[case.variant]).eval()
    return GrootV(**model_args(case.config)).eval()


def convert(state_dict: dict[str, Tensor], model: GrootV) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: GrootV, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    return out | {"stem": model.stem(x).permute(0, 3, 1, 2), "logits": model.forward_head(final)}


def _input(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.from_numpy(reference_input(shape, seed))


def _tree(record: dict) -> Iterator[Deviation]:
    guide = _input((2, 4, 5, 6), 5)
    down = torch.exp(-F.cosine_similarity(guide[:, :, :-1], guide[:, :, 1:], dim=1))
    right = torch.exp(-F.cosine_similarity(guide[..., :-1], guide[..., 1:], dim=1))
    yield compare_operator(
        "edge weights", torch.cat([down.flatten(1), right.flatten(1)], 1), np.array(record["edge_weight"])
    )
    vertex = torch.arange(30).view(5, 6)
    pairs = [torch.stack(p, -1).flatten(0, 1) for p in ((vertex[:-1], vertex[1:]), (vertex[:, :-1], vertex[:, 1:]))]
    yield compare_operator("edges", torch.cat(pairs), np.array(record["edges"]), 0.0)
    parent = spanning_tree(down, right)
    found = [sorted(sorted((i, p)) for i, p in enumerate(tree) if p >= 0) for tree in parent.tolist()]
    yield compare_operator("edges of the trees", torch.tensor(found), np.array(record["tree_edges_sorted"]), 0.0)
    recorded = np.array(record["parent_vertex"])
    recorded[:, 0] = -1  # a root is its own parent there
    yield compare_operator("parents", parent, recorded, 0.0)

    x, decay = _input((2, 4, 30), 6).requires_grad_(), _input((2, 4, 30), 7).sigmoid().requires_grad_()
    y = tree_scan(x.mT, decay.mT, parent).mT
    grads = torch.autograd.grad((y * _input((2, 4, 30), 8)).sum(), [x, decay])
    for name, ours in zip(("output", "grad_feature", "grad_decay"), (y, *grads), strict=True):
        yield compare_operator(name, ours, np.array(record[name]).reshape(2, 4, 30))

    case = record["tree_ssm"]
    mixer = TreeMixer(case["config"]["d_model"])
    weights = {f".TreeSSM.{name}": torch.from_numpy(fill(name, shape)) for name, shape in case["keys"]}
    own = mixer.state_dict()
    renamed = {GrootV.layout.rename(name).removeprefix(".mixer."): value for name, value in weights.items()}
    mixer.load_state_dict({name: value.reshape(own[name].shape) for name, value in renamed.items()}, strict=True)
    with torch.no_grad():
        y = mixer(_input(tuple(case["input_shape_bhwc"]), case["input_seed"]))
    yield compare_operator("mixer", y, np.array(case["output_bhwc"]).reshape(y.shape))


OPERATORS = {"grootv-tree": _tree}
