"""GroupMamba against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import timm
import torch
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.models._builder import VisionModel
from visionssm.models.groupmamba import GroupMamba, ModulatedGroupMixer
from visionssm.scans import scan_table

from . import Case, Deviation, compare_operator, fill, reference_input, registered_names

RECORDS = ("groupmamba_*",)
FULL_SIZE_TOLERANCE = 1e-3  # the published sizes multiply normalised maps, which amplifies rounding
FAST = ("groupmamba_tiny",)


def build(case: Case) -> GroupMamba:
    if case.full_size:
        return timm.create_model(registered_names()[case.variant]).eval()
    config = case.config
    return GroupMamba(
        num_classes=config["num_classes"],
        dims=config["embed_dims"],
        depths=config["depths"],
        mlp_ratios=config["mlp_ratios"],
        stem_dim=config["stem_hidden_dim"],
        distilled=config["distillation"],
        norm_eps=config["norm_eps"],
    ).eval()


def convert(state_dict: dict[str, Tensor], model: GroupMamba) -> dict[str, Tensor]:
    return VisionModel.checkpoint_filter_fn(state_dict, model)


def outputs(model: GroupMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    out = {}
    x = model.stem(x)
    for i, stage in enumerate(model.stages, 1):
        x = stage.blocks(stage.downsample(x))
        out[f"stage{i}"] = x.permute(0, 3, 1, 2)
        x = stage.norm(x)
        if i < len(model.stages):
            out[f"norm{i}"] = x.permute(0, 3, 1, 2)
    out["token"] = model.forward_head(x, pre_logits=True)
    out["logits"] = model.forward_head(x)
    return out


def _layer(record: dict) -> Iterator[Deviation]:
    for table in record["routes"]:
        height, width = table["H"], table["W"]
        yield compare_operator(
            f"routes {height} x {width}", scan_table("cross", height, width), np.array(table["routes"]), 0.0
        )
    for case in record["layers"]:
        dim, height, width = case["dim"], case["H"], case["W"]
        mixer = ModulatedGroupMixer(dim, "cross")
        weights = {f"block1.0.attn.{key}": torch.from_numpy(fill(key, shape)) for key, shape in case["keys"]}
        prefix = "stages.0.blocks.0.mixer."
        shapes = {prefix + k: v.shape for k, v in mixer.state_dict().items()}
        mixer.load_state_dict(
            {k.removeprefix(prefix): v for k, v in GroupMamba.layout.convert(weights, shapes).items()}, strict=True
        )
        x = torch.from_numpy(reference_input((2, height * width, dim), 51)).unflatten(1, (height, width))
        with torch.no_grad():
            y = mixer(x).flatten(1, 2)
        yield compare_operator(
            f"layer {dim} {height} x {width}", y, np.array(case["output"]["data"]).reshape(case["output"]["shape"])
        )


OPERATORS = {"groupmamba-layer": _layer}
