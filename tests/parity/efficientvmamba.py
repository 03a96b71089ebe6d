"""EfficientVMamba against the recorded runs of the original."""

from collections.abc import Iterator

import timm
from torch import Tensor, nn

import visionssm  # noqa: F401
from visionssm.layers import SS2D, PatchMerging
from visionssm.models._builder import make_kit
from visionssm.models.efficientvmamba import EfficientVMamba, EVSSBlock, InvertedResidual
from visionssm.scans import scan_table

from . import Case, Deviation, compare_operator, compare_part, dense_outputs, dense_weights, is_dense, registered_names

RECORDS = ("efficientvmamba_*",)
FAST = ("efficientvmamba_tiny-64x96",)


def build(case: Case) -> EfficientVMamba:
    if case.full_size:
        return timm.create_model(registered_names()[case.variant]).eval()
    config = case.config
    # the original has only the first kind of downsampling and step 2, ignores d_state and dt_rank, and has no MLP
    assert (config["downsample_version"], config["step_size"], config["mlp_ratio"]) == ("v1", 2, 0)
    assert config["patch_size"] == 4
    return EfficientVMamba(
        dims=config["dims"],
        depths=config["depths"],
        ssm_ratio=config["ssm_ratio"],
        in_chans=config["in_chans"],
        num_classes=0 if is_dense(case) else config["num_classes"],
        drop_path_rate=config.get("drop_path_rate", 0.0),
    ).eval()


def convert(state_dict: dict[str, Tensor], model: EfficientVMamba) -> dict[str, Tensor]:
    if any(k.startswith("outnorm") for k in state_dict):
        state_dict = dense_weights(state_dict, model)
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: EfficientVMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    if is_dense(case):
        return dense_outputs(stages)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    out["stem"] = model.stem(x).permute(0, 3, 1, 2)
    out["logits"] = model.forward_head(final)
    return out


def _convert_part(module: nn.Module, ours: str, theirs: str):
    shapes = {ours + k: v.shape for k, v in module.state_dict().items()}

    def convert(source: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = {theirs + k: v for k, v in source.items()}
        converted = EfficientVMamba.layout.convert(whole, shapes)
        return {k.removeprefix(ours): v for k, v in converted.items()}

    return convert


def _blocks(record: dict) -> Iterator[Deviation]:
    kit = make_kit("gelu", nn.LayerNorm, 1e-5, 0.0, None, None)

    def ss2d(dim: int, states: int) -> SS2D:
        return SS2D(dim, 2 * dim, states, 1, scan="atrous2", gated=True, conv_bias=True, norm_layer=kit.norm_layer)

    block, there = "stages.0.blocks.0.", "layers.0.blocks.0."
    parts = {
        "es2d": (ss2d(4, 4), f"{block}mixer.", f"{there}op."),
        "es2d_even": (ss2d(4, 4), f"{block}mixer.", f"{there}op."),
        "evss_block": (EVSSBlock(8, ss2d(8, 16), 0.0, kit), block, there),
        "inverted_residual": (InvertedResidual(8, 0.0, kit), "stages.2.blocks.0.", "layers.2.1."),
        "patch_merging": (PatchMerging(4, 8, kit.norm_layer), "stages.1.downsample.", "layers.0.downsample."),
    }
    assert set(parts) == set(record)
    for name, (module, ours, theirs) in parts.items():
        part = record[name]
        yield from compare_part(
            name, part, module, _convert_part(module, ours, theirs), channels_first=name == "inverted_residual"
        )


def _orders(record: dict) -> Iterator[Deviation]:
    for case in record["cases"]:
        height, width, step = case["H"], case["W"], case["step"]
        yield compare_operator(
            f"order {height} x {width}", scan_table(f"atrous{step}", height, width), case["orders"], 0.0
        )


OPERATORS = {"efficientvmamba-blocks": _blocks, "efficientvmamba-es2d_order": _orders}
