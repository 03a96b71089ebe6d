"""RSMamba against the recorded runs of the original, which were given the permutations of our seeds."""

from torch import Tensor

import visionssm  # noqa: F401
from visionssm.models._builder import VisionModel
from visionssm.models.rsmamba import RSMamba

from . import Case, create

RECORDS = ("rsmamba_*",)
PATHS = {  # scan, shuffle, gated
    "forward": ("raster", False, False),
    "forward_reverse_mean": ("bidirectional", False, False),
    "forward_reverse_gate": ("bidirectional", False, True),
    "forward_reverse_shuffle_mean": ("bidirectional", True, False),
    "forward_reverse_shuffle_gate": ("bidirectional", True, True),
}
CLASS_TOKENS = {"none": None, "head": "first", "middle": "middle", "tail": "last"}
POOLS = {"avg_featmap": "avg", "cls_token": "token"}


def build(case: Case) -> RSMamba:
    if case.full_size:
        return create(case)
    config = case.config
    scan, shuffle, gated = PATHS[config["path_type"]]
    return RSMamba(
        img_size=config["img_size"],
        num_classes=config["num_classes"],
        embed_dim=config["arch"]["embed_dims"],
        depth=config["arch"]["num_layers"],
        dim_inner=config["arch"]["feedforward_channels"],
        patch_size=config["patch_size"],
        stride=config["patch_cfg"]["stride"],
        scan=scan,
        shuffle=shuffle,
        gated=gated,
        class_token=CLASS_TOKENS[config["cls_position"]],
        global_pool=POOLS[config["out_type"]],
    ).eval()


def convert(state_dict: dict[str, Tensor], model: RSMamba) -> dict[str, Tensor]:
    return VisionModel.checkpoint_filter_fn(state_dict, model)


def outputs(model: RSMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, streams = model.forward_intermediates(x)
    out = {f"layers.{i}": stream for i, stream in enumerate(streams)}
    out["patch_embed"] = model.patch_embed(x).permute(0, 3, 1, 2)
    grid = out["patch_embed"].shape[-2:]
    out["ln1"] = model.split_tokens(final)[0].unflatten(1, grid).permute(0, 3, 1, 2)
    out["features"] = model.forward_head(final, pre_logits=True)
    out["logits"] = model.forward_head(final)
    return out
