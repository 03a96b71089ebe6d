"""HRVMamba against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import timm
import torch
from torch import Tensor, nn

import visionssm  # noqa: F401
from visionssm.models._builder import Kit, VisionModel
from visionssm.models.hrvmamba import DeformableConv, DVSSBlock, HRVMamba
from visionssm.ops import deformable_sampling

from . import Case, Deviation, compare_operator, fill_state_dict, reference_input, registered_names, tolerances

RECORDS = ("hrvmamba_*",)
FAST = ("hrvmamba_nano-64x96-damped",)


def build(case: Case) -> HRVMamba:
    if case.full_size:
        return timm.create_model(registered_names()[case.variant]).eval()
    config = case.config
    return HRVMamba(
        dims=config["num_channels"],
        stem_dim=config["stage1_channels"],
        modules=config["num_modules"],
        depth=config["num_blocks"],
        excited=config["kind"] == "se_lpu",
        drop_path_rate=config["drop_path_rate"],
    ).eval()


def convert(state_dict: dict[str, Tensor], model: HRVMamba) -> dict[str, Tensor]:
    return VisionModel.checkpoint_filter_fn(state_dict, model)


def outputs(model: HRVMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    maps = model.stem(x)
    out = {"stem_layer1": maps}
    for i, stage in enumerate(model.stages, 2):
        maps = stage(maps)
        out[f"stage{i}_last"] = maps[-1]
    out |= {f"branch{i}": level for i, level in enumerate(maps)}
    out["neck"] = model.neck(maps)
    out["logits"] = model.forward_head(out["neck"])
    return out


def _sampling(case: dict) -> Iterator[Deviation]:
    value = torch.from_numpy(reference_input(case["value_shape"], case["value_seed"])).requires_grad_()
    offset_mask = (1.5 * torch.from_numpy(reference_input(case["offset_mask_shape"], 32))).requires_grad_()
    y = deformable_sampling(value, offset_mask, case["group"])
    yield compare_operator("sampling", y, np.array(case["output_bhwc"]).reshape(y.shape))
    (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum().backward()
    for name, leaf in (("value", value), ("offset_mask", offset_mask)):
        expected = np.array(case[f"grad_{name}"]).reshape(leaf.shape)
        yield compare_operator(f"sampling, gradient of {name}", leaf.grad, expected, tolerances.GRADIENTS)


def _compare(name: str, case: dict, module: nn.Module, part: str) -> Iterator[Deviation]:
    theirs, ours = "stage2.0.branches.0.0." + part, "stages.0.0.blocks.0.branches.0."
    ours += "mixer.conv." if part else ""
    leaves = {k: v.requires_grad_() for k, v in fill_state_dict(case["keys"]).items()}
    shapes = {ours + k: v.shape for k, v in module.state_dict().items()}
    converted = HRVMamba.layout.convert({theirs + k: v for k, v in leaves.items()}, shapes)
    weights = {k.removeprefix(ours): v for k, v in converted.items()}
    x = torch.from_numpy(reference_input(case["input_shape"], case["input_seed"])).requires_grad_()
    y = torch.func.functional_call(module, weights, (x,), strict=True)
    yield compare_operator(name, y, np.array(case["output"]).reshape(case["output_shape"]))
    (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum().backward()
    expected = np.array(case["grad_input"]).reshape(x.shape)
    yield compare_operator(f"{name}, gradient of the input", x.grad, expected, tolerances.GRADIENTS)
    for key, leaf in leaves.items():
        norm = case["grad_param_l2"][key]
        yield Deviation(
            f"{name}, gradient of {key}", abs(float(leaf.grad.norm()) - norm), tolerances.GRADIENTS * max(norm, 1e-3)
        )


def _blocks(record: dict) -> Iterator[Deviation]:
    yield from _sampling(record["sampling"])
    for name, case in record["cases"].items():
        config = case["config"]
        if name.startswith("dcn"):
            module: nn.Module = DeformableConv(
                config["channels"],
                config["group"],
                with_conv=any("offset_mask_dw" in key for key, _ in case["keys"]),
                pointwise=any("value_proj" in key for key, _ in case["keys"]),
            )
            yield from _compare(name, case, module, "op.conv2d.")
        else:
            module = DVSSBlock(config["dim"], 0.0, "cross", config["kind"] == "se_lpu", False, Kit())
            yield from _compare(name, case, module, "")


OPERATORS = {"hrvmamba-blocks": _blocks}
