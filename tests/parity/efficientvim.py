"""timm's EfficientViM against the recorded runs of the original: the family's models are timm's, not this package's."""

from collections.abc import Iterator

import numpy as np
import timm
import torch
from timm.models.efficientvim import HSMSSD, EfficientViM, EfficientViMBlock, EfficientViMDistilled, PatchMerging
from timm.models.efficientvim import checkpoint_filter_fn as convert
from torch import Tensor, nn

from . import Case, Deviation, compare_operator, fill, reference_input, tolerances

RECORDS = ("efficientvim_*",)
__all__ = ["OPERATORS", "RECORDS", "build", "convert", "outputs"]
_NAMES = {"in_dim": "in_chans"}


def build(case: Case) -> EfficientViM:
    if case.config is None:
        return timm.create_model(case.variant).eval()
    args = {_NAMES.get(name, name): value for name, value in case.config.items()}
    model = EfficientViMDistilled if args.pop("distillation", False) else EfficientViM
    return model(**args).eval()


def outputs(model: EfficientViM, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    return out | {"stem": model.patch_embed(x), "logits": model.forward_head(final)}


def _hsmssd(record: dict) -> Iterator[Deviation]:
    yield from _module("mixer", record["mixer"], HSMSSD(6, state_dim=4), (3, 5))
    yield from _module("block", record["block"], EfficientViMBlock(6, state_dim=4))
    yield from _module("patch merging", record["patch_merging"], PatchMerging(6, 8))


def _module(name: str, case: dict, module: nn.Module, size: tuple[int, int] | None = None) -> Iterator[Deviation]:
    """A part of timm's model; `size` is the map's where the original takes tokens."""
    module.eval()
    norms = case["grads"]["params"]
    source = {key: torch.from_numpy(fill(key, tuple(shape))) for key, shape in case["keys"]}
    leaves = {key: source[key].requires_grad_() for key in norms}
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    module.load_state_dict({key: value.detach().reshape(shapes[key]) for key, value in source.items()}, strict=True)
    given = case["inputs"]["x"]
    x = torch.from_numpy(reference_input(given["shape"], given["seed"])).requires_grad_()
    weights = {key: value.reshape(shapes[key]) for key, value in source.items()}
    found = torch.func.functional_call(module, weights, (x if size is None else x.unflatten(2, size),))
    loss = 0
    for y, (key, recorded) in zip(
        found if isinstance(found, tuple) else (found,), case["outputs"].items(), strict=True
    ):
        yield compare_operator(f"{name}: {key}", y, np.reshape(recorded["data"], recorded["shape"]))
        loss = loss + (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
    grads = torch.autograd.grad(loss, [x, *leaves.values()])
    expected = np.reshape(case["grads"]["inputs"]["x"]["data"], given["shape"])
    yield compare_operator(f"{name}: gradient of x", grads[0], expected, tolerances.GRADIENTS)
    floor = tolerances.GRADIENT_FLOOR * max(norms.values())
    for key, grad in zip(leaves, grads[1:], strict=True):
        allowed = max(tolerances.GRADIENTS * norms[key], floor)
        yield Deviation(f"{name}: gradient norm of {key}", abs(float(grad.norm()) - norms[key]), allowed)


OPERATORS = {"efficientvim-hsmssd": _hsmssd}
