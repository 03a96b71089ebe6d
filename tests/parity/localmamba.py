"""LocalVMamba against the recorded runs of the original."""
from collections.abc import Iterator

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.layers import LocalSS2D
from visionssm.models.localmamba import LocalVMamba, checkpoint_filter_fn, scan_names
from visionssm.scans import inverse_table, scan_table

from . import Case, Deviation, compare_operator, compare_summary, fill, reference_input, registered_names

RECORDS = ("local_vssm_*",)
FAST = ("local_vssm_tiny",)
DEFECTIVE = {
    "local_vssm_custom_a_rect": "the original puts the outputs of column-wise scans back at wrong places if H != W",
}


def _scans(directions: list[list[str]]) -> tuple[str, ...]:
    return scan_names("\n".join(" ".join(block) for block in directions))


def localvmamba_args(config: dict) -> dict:
    """Arguments of our model for those of the original's constructor."""
    return dict(
        in_chans=config["in_chans"],
        num_classes=config["num_classes"],
        dims=config["dims"],
        depths=config["depths"],
        d_state=config["ssm_d_state"],
        ssm_ratio=config["ssm_ratio"],
        scan=_scans(config["directions"]),
        drop_path_rate=config["drop_path_rate"],
    )


def build(case: Case) -> LocalVMamba:
    if case.full_size:
        return timm.create_model(registered_names()[case.variant]).eval()
    return LocalVMamba(**localvmamba_args(case.config)).eval()


def convert(state_dict: dict[str, Tensor], model: LocalVMamba) -> dict[str, Tensor]:
    return checkpoint_filter_fn(state_dict, model)


def outputs(model: LocalVMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    out = {f"layers.{i}": stage for i, stage in enumerate(stages)}
    out["patch_embed"] = model.stem(x).permute(0, 3, 1, 2)
    out["norm"] = final.permute(0, 3, 1, 2)
    out["logits"] = model.forward_head(final)
    return out


def _fill(keys) -> dict[str, Tensor]:
    return {name: torch.from_numpy(fill(name, shape)) for name, shape in keys}


def _output(record: dict) -> np.ndarray:
    return np.array(record["output"]).reshape(record["output_shape"])


def _scan_orders(record: dict) -> Iterator[Deviation]:
    for table in record["tables"]:
        height, width = table["hw"]
        for code, route in table["scan"].items():
            name = scan_names(code)[0]
            ours = scan_table(name, height, width)[0]
            yield compare_operator(f"{code} at {height} x {width}", ours, np.array(route), 0.0)
            if height == width or not code.startswith("v"):  # elsewhere the original's is not the inverse
                ours = inverse_table(name, height, width)[0]
                reverse = np.array(table["reverse"][code])
                yield compare_operator(f"inverse of {code} at {height} x {width}", ours, reverse, 0.0)


_SS2D_NAMES = dict(
    x_proj_weight="ssm.x_proj_weight", dt_projs_weight="ssm.dt_weight", dt_projs_bias="ssm.dt_bias",
    A_logs="ssm.A_log", Ds="ssm.D")


def _ss2d(record: dict) -> Iterator[Deviation]:
    mixer = LocalSS2D(24, 48, 16, dt_rank=2, scan=_scans([record["directions"]])[0], norm_layer=torch.nn.LayerNorm)
    own = mixer.state_dict()
    weights = {}
    for name, value in _fill(record["keys"]).items():
        name = _SS2D_NAMES.get(name, name).replace("conv2d.", "conv.").replace("multi_scan.attn.", "merge.")
        name = name.replace("global_reduce", "reduce").replace("channel_select", "expand")
        weights[name] = value.reshape(own[name].shape)
    mixer.load_state_dict(weights, strict=True)
    with torch.no_grad():
        y = mixer(torch.from_numpy(reference_input(record["output_shape"], 3)))
    yield compare_operator("output", y, _output(record))


def _outnorm(name: str, x: Tensor) -> Tensor:
    weight, bias = (torch.from_numpy(fill(f"{name}.{kind}", (x.shape[1],))) for kind in ("weight", "bias"))
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, 1e-5).permute(0, 3, 1, 2)


def _localvmamba_backbone(record: dict) -> Iterator[Deviation]:
    model = LocalVMamba(**dict(localvmamba_args(record["config"]), num_classes=0)).eval()
    weights = {k: v for k, v in _fill(record["keys"]).items() if not k.startswith("outnorm")}
    weights["classifier.norm.weight"] = torch.ones(model.num_features)
    weights["classifier.norm.bias"] = torch.zeros(model.num_features)
    model.load_state_dict(checkpoint_filter_fn(weights, model), strict=True)
    with torch.no_grad():
        maps = model.forward_intermediates(
            torch.from_numpy(reference_input(record["input_shape"], record["seed"])), indices=record["out_indices"],
            intermediates_only=True)
    for i, (x, expected) in enumerate(zip(maps, record["outputs"], strict=True)):
        yield compare_summary(expected["name"], _outnorm(f"outnorm{record['out_indices'][i]}", x), expected)


OPERATORS = {
    "localmamba-scan_orders": _scan_orders,
    "localmamba-ss2d-5x6": _ss2d,
    "localmamba-ss2d-8x8": _ss2d,
    "localmamba-backbone-local_vssm": _localvmamba_backbone,
}
