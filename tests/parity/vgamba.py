"""vGamba against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.models._builder import Kit, VisionModel
from visionssm.models.vgamba import GambaBlock, VGamba

from . import Case, Deviation, compare_operator, create, fill_state_dict, reference_input, tolerances

RECORDS = ("vgamba_*",)
FAST = ()


def build(case: Case) -> VGamba:
    if case.full_size:
        return create(case)
    config = case.config
    return VGamba(
        num_classes=config["num_classes"],
        depths=config["num_blocks"],
        heads=config["heads"],
        img_size=tuple(config["resolution"]),
    ).eval()


def convert(state_dict: dict[str, Tensor], model: VGamba) -> dict[str, Tensor]:
    return VisionModel.checkpoint_filter_fn(state_dict, model)


def outputs(model: VGamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    out["stem"] = model.stem(x)
    out["logits"] = model.forward_head(final)
    return out


def _blocks(record: dict) -> Iterator[Deviation]:
    theirs = "layer3.1.conv2.0."
    ours = "stages.2.blocks.1.conv2.0."
    for name, part, prefix in (("cell", "cell", "ggnn."), ("mhsa", "attention", "mhsa."), ("gating_block", "", "")):
        case = record["cases"][name]
        config = case["config"]
        dim = config.get("planes") or 2 * config["n_dims"]
        block = GambaBlock(
            dim, (config["image_height"], config["image_width"]), config.get("heads", 1), "raster", 64, Kit()
        )
        module = block.get_submodule(part)
        leaves = {k: v.requires_grad_() for k, v in fill_state_dict(case["keys"]).items()}
        own = ours + (f"{part}." if part else "")
        shapes = {own + k: v.shape for k, v in module.state_dict().items()}
        converted = VGamba.layout.convert({theirs + prefix + k: v for k, v in leaves.items()}, shapes)
        weights = {k.removeprefix(own): v for k, v in converted.items()}
        x = torch.from_numpy(reference_input(case["input_shape"], case["input_seed"])).requires_grad_()
        y = torch.func.functional_call(module, weights, (x,), strict=True)
        yield compare_operator(name, y, np.array(case["output"]).reshape(case["output_shape"]))
        loss = (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
        grads = torch.autograd.grad(loss, [x, *leaves.values()], allow_unused=True)
        expected = np.array(case["grad_input"]).reshape(x.shape)
        yield compare_operator(f"{name}, gradient of the input", grads[0], expected, tolerances.GRADIENTS)
        floor = tolerances.GRADIENT_FLOOR * max(case["grad_param_l2"].values())
        for key, grad in zip(leaves, grads[1:], strict=True):
            norm = case["grad_param_l2"][key]
            found = 0.0 if grad is None else float(grad.norm())
            yield Deviation(f"{name}, gradient of {key}", abs(found - norm), max(tolerances.GRADIENTS * norm, floor))


OPERATORS = {"vgamba-blocks": _blocks}
