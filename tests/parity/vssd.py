"""VSSD against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visionssm  # noqa: F401
from visionssm.layers import BottleneckDownsample, ResidualConvStem
from visionssm.models.vssd import VSSD, MapAttention, NonCausalMixer
from visionssm.ops import noncausal_ssd

from . import Case, Deviation, compare_operator, fill, is_dense, reference_input, registered_names, tolerances

RECORDS = ("vssd_*",)
FAST = ("vssd_micro-damped",)
# the recorded float32 stages of the damped case are up to 1.2e-3 of their spread from the original's own in float64
FULL_SIZE_TOLERANCE = 1e-3
_NAMES = {
    "embed_dim": "dims",
    "ssd_expansion": "expand",
    "drop_rate": "proj_drop_rate",
    "d_state": "d_state",
    "depths": "depths",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "in_chans": "in_chans",
    "num_classes": "num_classes",
    "drop_path_rate": "drop_path_rate",
}
# arguments of the original that have one value in all published models, whose other values ours lacks
_FIXED = {
    "patch_size": 4,
    "simple_downsample": False,
    "simple_patch_embed": False,
    "ssd_ngroups": 1,
    "linear_attn_duality": True,
    "lepe": False,
    "bidirection": False,
}
_MIXERS = {"mamba2": "ssd", "standard": "attention"}
_IGNORED = ("attn_types", "ssd_positve_dA", "ssd_chunk_size", "out_indices")


def defect(case: Case) -> str:
    if case.record["input_shape"][0] > 1 or "grads" not in case.record:
        return ""
    return (
        "recorded with a batch of one, for which PyTorch's backward of a batch norm in evaluation mode reads the "
        "gradient of a transposed map in the wrong order; ours agree with finite differences"
    )


def build(case: Case) -> VSSD:
    if case.variant in registered_names():
        return timm.create_model(registered_names()[case.variant]).eval()
    config = dict(case.config)
    for name, value in _FIXED.items():
        if config.pop(name, value) != value:
            raise NotImplementedError(f"{name} of the original other than {value}")
    if unknown := set(config) - set(_NAMES) - set(_IGNORED):
        raise NotImplementedError(f"arguments of the original that ours lacks: {sorted(unknown)}")
    args = {_NAMES[name]: value for name, value in config.items() if name in _NAMES}
    if is_dense(case):
        args["num_classes"] = 0
    mixers = [_MIXERS[name] for name in config.get("attn_types", ["mamba2"] * 3 + ["standard"])]
    return VSSD(**args, mixers=mixers, negative_weights=not config.get("ssd_positve_dA", True)).eval()


def convert(state_dict: dict[str, Tensor], model: VSSD) -> dict[str, Tensor]:
    if any(k.startswith("outnorm") for k in state_dict):  # a dense backbone: norms of its own, no final one
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("outnorm")}
        state_dict["norm.weight"] = torch.ones(model.num_features)
        state_dict["norm.bias"] = torch.zeros(model.num_features)
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: VSSD, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    if is_dense(case):
        return {f"out{i}": _outnorm(i, stage) for i, stage in enumerate(stages)}
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    out["stem"] = model.stem(x).permute(0, 3, 1, 2)
    return out | {"logits": model.forward_head(final)}


def _outnorm(i: int, x: Tensor) -> Tensor:
    weight, bias = (torch.from_numpy(fill(f"outnorm{i}.{name}", (x.shape[1],))) for name in ("weight", "bias"))
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias).permute(0, 3, 1, 2)


def _ncssd(record: dict) -> Iterator[Deviation]:
    yield from _core(record["core"])
    block = VSSD(dims=(6,), depths=(1,), num_heads=(3,), d_state=5, mixers=("ssd",)).stages[0].blocks[0]
    mixer = NonCausalMixer(6, 3, 5)
    attention = MapAttention(12, _heads(record["attention"]))
    stem = ResidualConvStem(3, 4)
    merging = BottleneckDownsample(4, 8)
    yield from _module("mixer", record["mixer"], mixer, "layers.0.blocks.0.attn.", "stages.0.blocks.0.mixer.", (3, 5))
    yield from _module(
        "attention", record["attention"], attention, "layers.0.blocks.0.attn.", "stages.0.blocks.0.mixer.", (3, 5)
    )
    yield from _module("block", record["block"], block, "layers.0.blocks.0.", "stages.0.blocks.0.", (3, 5))
    # the outputs of the stem only, for the reason of `defect`
    yield next(_module("stem", record["stem"], stem, "patch_embed.", "stem.", None))
    yield from _module(
        "patch merging", record["patch_merging"], merging, "layers.0.downsample.", "stages.1.downsample.", (5, 7)
    )


def _heads(case: dict) -> int:
    return case.get("num_heads", 3)


def _core(case: dict) -> Iterator[Deviation]:
    given = {
        name: torch.from_numpy(reference_input(i["shape"], i["seed"])).requires_grad_()
        for name, i in case["inputs"].items()
    }
    y = noncausal_ssd(given["x"], given["dt"], -given["A_log"].exp(), given["B"], given["C"], given["D"])
    yield from _compare("core", case, y, given, {})


def _module(name: str, case: dict, module: nn.Module, theirs: str, ours: str, size) -> Iterator[Deviation]:
    """A part of the model under the names it has in a model, on a map of a size given as tokens."""
    module.eval()
    source = {theirs + key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in case["keys"]}
    leaves = {
        key: value.requires_grad_()
        for key, value in source.items()
        if key.removeprefix(theirs) in case["grads"]["params"]
    }
    shapes = {ours + key: tuple(value.shape) for key, value in module.state_dict().items()}
    weights = {key.removeprefix(ours): value for key, value in VSSD.layout.convert(source, shapes).items()}
    module.load_state_dict({key: value.detach() for key, value in weights.items()}, strict=True)
    (key, given), *_ = case["inputs"].items()
    x = torch.from_numpy(reference_input(given["shape"], given["seed"])).requires_grad_()
    y = torch.func.functional_call(module, weights, (x if size is None else x.unflatten(1, size),)).flatten(1, 2)
    yield from _compare(name, case, y, {key: x}, {key.removeprefix(theirs): value for key, value in leaves.items()})


def _compare(name: str, case: dict, y: Tensor, inputs: dict, parameters: dict) -> Iterator[Deviation]:
    yield compare_operator(name, y, np.reshape(case["outputs"]["y"]["data"], case["outputs"]["y"]["shape"]))
    loss = (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
    grads = torch.autograd.grad(loss, [*inputs.values(), *parameters.values()])
    for (key, recorded), grad in zip(case["grads"]["inputs"].items(), grads, strict=False):
        expected = np.reshape(recorded["data"], recorded["shape"])
        yield compare_operator(f"{name}: gradient of {key}", grad, expected, tolerances.GRADIENTS)
    norms = case["grads"].get("params", {})
    for (key, _), grad in zip(parameters.items(), grads[len(inputs) :], strict=True):
        yield Deviation(
            f"{name}: gradient norm of {key}",
            abs(float(grad.norm()) - norms[key]),
            max(tolerances.GRADIENTS * norms[key], tolerances.GRADIENT_FLOOR * max(norms.values())),
        )


OPERATORS = {"vssd-ncssd": _ncssd}
