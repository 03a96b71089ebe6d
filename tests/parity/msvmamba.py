"""MSVMamba against the recorded runs of the original."""

from collections.abc import Iterator

import timm
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.models.msvmamba import MSVMamba

from . import Case, Deviation, compare_part, dense_outputs, dense_weights, is_dense, registered_names

RECORDS = ("msvmamba_*", "msvmambav3_*")
FAST = ("msvmamba_nano-64x96", "msvmambav3_tiny-64x96")
_FORWARD = {"v2": True, "vms": True, "vms_noz": False}  # is the mixer gated?


def build(case: Case) -> MSVMamba:
    if case.full_size:
        return timm.create_model(registered_names()[case.variant]).eval()
    config = case.config
    v3 = "full_res_index" in config
    # what the published models do not vary
    kinds = (config["patchembed_version"], config["downsample_version"], config["norm_layer"])
    assert kinds == (("v2", "v3", "ln2d") if v3 else ("v1", "v1", "ln"))
    assert config["add_se"] and config["ssm_conv_bias"] and config["ssm_conv"] == 3 and config["patch_size"] == 4
    assert config["convffn"] if v3 else config["convFFN"] and config["add_conv"]
    return MSVMamba(
        dims=config["dims"],
        depths=config["depths"],
        d_state=config["ssm_d_state"],
        ssm_ratio=config["ssm_ratio"],
        gated=_FORWARD[config["forward_type"]],
        mlp_ratio=config.get("conv_ffn_ratio", 2.0),
        v3=v3,
        in_chans=config["in_chans"],
        num_classes=0 if is_dense(case) else config["num_classes"],
        drop_path_rate=config.get("drop_path_rate", 0.0),
    ).eval()


def convert(state_dict: dict[str, Tensor], model: MSVMamba) -> dict[str, Tensor]:
    if any(k.startswith("outnorm") for k in state_dict):
        state_dict = dense_weights(state_dict, model)
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: MSVMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    if is_dense(case):
        return dense_outputs(stages)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    out["stem"] = model.stem(x).permute(0, 3, 1, 2)
    out["logits"] = model.forward_head(final)
    return out


def _blocks(record: dict) -> Iterator[Deviation]:
    dims = {"ms2d": 4, "ms2d_v3_noz": 8, "ms2d_v3_gate": 8, "block": 4, "block_v3_noz": 8}
    assert set(dims) == set(record)
    for name, dim in dims.items():
        v3, whole = "v3" in name, name.startswith("block")
        model = MSVMamba(dims=(dim,), depths=(1,), v3=v3, gated=not name.endswith("noz"))
        block = model.stages[0].blocks[0]
        module, ours = (block, "stages.0.blocks.0.") if whole else (block.mixer, "stages.0.blocks.0.mixer.")
        theirs = "layers.0.blocks.0." + ("" if whole else "op.")

        def convert_part(source, model=model, module=module, ours=ours, theirs=theirs):
            shapes = {ours + k: v.shape for k, v in module.state_dict().items()}
            converted = model.layout.convert({theirs + k: v for k, v in source.items()}, shapes)
            return {k.removeprefix(ours): v for k, v in model.adapt_state_dict(converted).items()}

        yield from compare_part(name, record[name], module, convert_part, channels_first=v3)


OPERATORS = {"msvmamba-blocks": _blocks}
