"""PlainMamba against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.models._builder import VisionModel
from visionssm.models.plainmamba import DirectionalMixer, PlainMamba
from visionssm.scans import direction_table, inverse_table, scan_table

from . import (
    Case,
    Deviation,
    compare_operator,
    compare_summary,
    create,
    fill,
    fill_state_dict,
    reference_input,
    tolerances,
)

RECORDS = ("plainmamba_*",)
FAST = ("plainmamba_l1-64x96", "plainmamba_l1")


def model_args(config: dict) -> dict:
    """Arguments of our model for those of the original's constructor."""
    mixer = config["layer_cfgs"]["mamba_cfg"]
    return dict(
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        num_classes=config.get("num_classes", 0),
        embed_dim=config["embed_dims"],
        depth=config["num_layers"],
        stem_depth=config["num_convs_patch_embed"],
        conv_blocks=config["layers_with_dwconv"],
        d_state=mixer["d_state"],
        d_conv=mixer["conv_size"],
        expand=mixer["expand"],
    )


def build(case: Case) -> PlainMamba:
    if case.full_size:
        return create(case)
    return PlainMamba(**model_args(case.config)).eval()


def convert(state_dict: dict[str, Tensor], model: PlainMamba) -> dict[str, Tensor]:
    return VisionModel.checkpoint_filter_fn(state_dict, model)


def outputs(model: PlainMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, blocks = model.forward_intermediates(x)
    out = {f"layers.{i}": block for i, block in enumerate(blocks)}
    out["patch_embed"] = model.patch_embed(x).permute(0, 3, 1, 2)
    out["final_norm"] = final.transpose(1, 2).unflatten(2, blocks[-1].shape[2:])
    out["logits"] = model.forward_head(final)
    return out


def _scan_orders(record: dict) -> Iterator[Deviation]:
    for table in record["tables"]:
        for kind, ours in (("orders", scan_table), ("inverse", inverse_table), ("directions", direction_table)):
            yield compare_operator(
                f"{kind} {table['hw'][0]} x {table['hw'][1]}", ours("snake", *table["hw"]), np.array(table[kind]), 0.0
            )


def _mixer(record: dict) -> Iterator[Deviation]:
    height, width = record["hw"]
    mixer = DirectionalMixer(24)
    prefix = "blocks.0.mixer."
    weights = {
        PlainMamba.layout.rename(f"layers.0.mamba.{key}"): torch.from_numpy(fill(key, shape))
        for key, shape in record["keys"]
    }
    mixer.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items()}, strict=True)
    x = torch.from_numpy(reference_input((2, height * width, 24), seed=3))
    with torch.no_grad():
        y = mixer(x, height, width)
        u = mixer.convolve(F.linear(x, *(p.chunk(2)[0] for p in mixer.in_proj.parameters())), height, width)
        scans = mixer.ssm(u, height, width, out="step")
    yield compare_operator("output", y, np.array(record["output"]).reshape(record["output_shape"]))
    for k, scan in enumerate(record["scans"]):
        yield compare_summary(scan["name"], scans[:, :, k].transpose(1, 2), scan, tolerances.OPERATORS)


def _backbone(record: dict) -> Iterator[Deviation]:
    model = PlainMamba(**model_args(record["config"])).eval()
    weights = fill_state_dict(record["keys"])
    # every output but the last has a norm of its own
    norms = {k: weights.pop(k) for k in list(weights) if k.startswith("norm_layer")}
    model.load_state_dict(VisionModel.checkpoint_filter_fn(weights, model), strict=True)
    x = torch.from_numpy(reference_input(record["input_shape"], record["seed"]))
    with torch.no_grad():
        final, stream = model.forward_intermediates(x, indices=record["out_indices"])
        first = F.layer_norm(
            stream[0].permute(0, 2, 3, 1),
            stream[0].shape[1:2],
            norms["norm_layer0.weight"],
            norms["norm_layer0.bias"],
            1e-6,
        )
        maps = [first.permute(0, 3, 1, 2), final.transpose(1, 2).unflatten(2, stream[0].shape[2:])]
    for ours, out in zip(maps, record["outputs"], strict=True):
        yield compare_summary(out["name"], ours, out)


OPERATORS = {
    "plainmamba-scan_orders": _scan_orders,
    "plainmamba-mixer-*": _mixer,
    "plainmamba-backbone*": _backbone,
}
