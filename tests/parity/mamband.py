"""Mamba-ND against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.layers import MambaMixer
from visionssm.models.mamband import _ORDERS, ChannelMerging, MambaND
from visionssm.scans import scan_table

from . import Case, Deviation, compare_operator, create, fill, reference_input, registered_names

RECORDS = ("mamband_*",)
FAST = ("mamband_2d_small",)
# arguments of the original that have one value in all published models, whose other values ours lacks
_FIXED = {
    "out_type": "avg_featmap",
    "with_cls_token": False,
    "final_norm": True,
    "fused_add_norm": False,
    "is_2d": False,
    "use_v2": False,
    "use_nd": False,
    "constant_dim": True,
    "force_a2": False,
    "use_mlp": False,
}


def build(case: Case) -> MambaND:
    if case.variant in registered_names():
        return create(case)
    config = dict(case.config)
    for name, value in _FIXED.items():
        if config.pop(name, value) != value:
            raise NotImplementedError(f"{name} of the original other than {value}")
    arch = config["arch"]
    same = {name: config[name] for name in ("d_state", "drop_path_rate", "img_size", "num_classes", "patch_size")}
    return MambaND(
        embed_dim=arch["embed_dims"],
        depth=2 * arch["num_layers"],
        merge_after=config["downsample"],
        pos_drop_rate=config.get("drop_rate", 0.0),
        in_chans=config.get("in_channels", 3),
        **same,
    ).eval()


def convert(state_dict: dict[str, Tensor], model: MambaND) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: MambaND, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, blocks = model.forward_intermediates(x)
    out = {f"block{i}": block for i, block in enumerate(blocks)}
    out["patch_embed"] = model.patch_embed(x).permute(0, 3, 1, 2)
    return out | {"logits": model.forward_head(final)}


def _blocks(record: dict) -> Iterator[Deviation]:
    for size, orders in record["scan_orders"].items():
        if size != "note":
            height, width = map(int, size.split("x"))
            ours = torch.cat([scan_table(name, height, width) for name in _ORDERS])
            yield compare_operator(f"scan orders {size}", ours, orders, 0.0)

    case = record["patch_merging"]
    merging = ChannelMerging(case["config"]["channels"])
    merging.load_state_dict(_fill(case["keys"]), strict=True)
    with torch.no_grad():
        y = merging(torch.from_numpy(reference_input(case["input_shape_blc"], case["input_seed"])), *case["hw"])
    yield compare_operator("patch merging", y, np.reshape(case["output_blc"], y.shape))

    case, config = record["mamba_mixer"], record["mamba_mixer"]["config"]
    mixer = MambaMixer(config["d_model"], "raster", config["d_state"], config["d_conv"], config["expand"])
    prefix = "blocks.0.mixer."
    shapes = {prefix + k: tuple(v.shape) for k, v in mixer.state_dict().items()}
    source = {f"layers.0.mixer.{k}": v for k, v in _fill(case["keys"]).items()}
    converted = MambaND.layout.convert(source, shapes)
    mixer.load_state_dict({k.removeprefix(prefix): v for k, v in converted.items()}, strict=True)
    x = torch.from_numpy(reference_input(case["input_shape_blc"], case["input_seed"]))
    with torch.no_grad():
        y = mixer(x, 1, x.shape[1])
    yield compare_operator("mixer", y, np.reshape(case["output_blc"], y.shape))


def _fill(keys) -> dict[str, Tensor]:
    return {name: torch.from_numpy(fill(name, tuple(shape))) for name, shape in keys}


OPERATORS = {"mamband-blocks": _blocks}
