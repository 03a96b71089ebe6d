"""LocalVMamba and LocalVim against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.layers import take_tokens
from visionssm.models._builder import VisionModel
from visionssm.models.localmamba import LocalVim, LocalVMamba, scan_names
from visionssm.scans import inverse_table, scan_table

from . import (
    Case,
    Deviation,
    compare_operator,
    compare_summary,
    create,
    fill,
    fill_state_dict,
    keys_of,
    reference_input,
)

RECORDS = ("local_vssm_*", "local_vim_*")
FAST = ("local_vssm_tiny", "local_vim_tiny")


def defect(case: Case) -> str:
    height, width = case.record["input_shape"][2:]
    known = [case.config or {}, case.record, {} if case.config else keys_of(case.variant)]
    directions = next((d["directions"] for d in known if "directions" in d), [])
    if height == width or not any(d.startswith("v") for block in directions for d in block):
        return ""
    return "the original puts the outputs of column-wise scans back at wrong places if H != W"


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


def localvim_args(config: dict) -> dict:
    """Arguments of our model for those of the original's constructor."""
    class_token = config.get("if_cls_token", False)
    return dict(
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        in_chans=config["channels"],
        num_classes=config["num_classes"],
        global_pool="token" if class_token else "avg",
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        class_token=class_token,
        rope_size=config["img_size"] if config["if_rope"] else 0,
        scan=_scans(config["directions"]),
        drop_path_rate=config["drop_path_rate"],
        norm_layer="rmsnorm" if config["rms_norm"] else "layernorm",
    )


def build(case: Case) -> LocalVMamba | LocalVim:
    if case.full_size:
        return create(case)
    if case.name.startswith("local_vssm"):
        return LocalVMamba(**localvmamba_args(case.config)).eval()
    return LocalVim(**localvim_args(case.config)).eval()


def convert(state_dict: dict[str, Tensor], model: LocalVMamba | LocalVim) -> dict[str, Tensor]:
    return VisionModel.checkpoint_filter_fn(state_dict, model)


def outputs(model: LocalVMamba | LocalVim, x: Tensor, case: Case) -> dict[str, Tensor]:
    if isinstance(model, LocalVim):
        final, streams = model.forward_intermediates(x)
        normed = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        out = {"patch_embed": model.patch_embed(x).permute(0, 3, 1, 2), "norm_f": normed[0]}
        if model.cls_token is not None:
            out["norm_f.cls"] = take_tokens(final)[:, 0]
    else:
        final, streams = model.forward_intermediates(x)
        out = {"patch_embed": model.stem(x).permute(0, 3, 1, 2), "norm": final.permute(0, 3, 1, 2)}
    for i, stream in enumerate(streams):
        out[f"layers.{i}"] = stream
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
    x_proj_weight="ssm.x_proj_weight",
    dt_projs_weight="ssm.dt_weight",
    dt_projs_bias="ssm.dt_bias",
    A_logs="ssm.A_log",
    Ds="ssm.D",
)


def _ss2d(record: dict) -> Iterator[Deviation]:
    model = LocalVMamba(dims=(24,), depths=(1,), scan=_scans([record["directions"]]))
    mixer = model.stages[0].blocks[0].mixer
    own = mixer.state_dict()
    weights = {}
    for name, value in _fill(record["keys"]).items():
        name = _SS2D_NAMES.get(name, name).replace("conv2d.", "conv.").replace("multi_scan.attn.", "route_gate.")
        name = name.replace("global_reduce", "reduce").replace("channel_select", "expand")
        weights[name] = value.reshape(own[name].shape)
    mixer.load_state_dict(weights, strict=True)
    with torch.no_grad():
        y = mixer(torch.from_numpy(reference_input(record["output_shape"], 3)))
    yield compare_operator("output", y, _output(record))


def _mixer(record: dict) -> Iterator[Deviation]:
    config = record["config"]
    scans = _scans([config["directions"]])
    class_token = config.get("use_middle_cls_token", False)
    # the filter converts whole models, so the mixer is converted as part of one
    model = LocalVim(
        img_size=16, num_classes=0, embed_dim=24, depth=1, class_token=class_token, rope_size=0, scan=scans
    )
    prefix = "blocks.0.mixer."
    source = {f"layers.0.mixer.{name}": value for name, value in _fill(record["keys"]).items()}
    source |= {name: value for name, value in model.state_dict().items() if not name.startswith(prefix)}
    weights = VisionModel.checkpoint_filter_fn(source, model)
    mixer = model.blocks[0].mixer
    mixer.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}, strict=True)
    with torch.no_grad():
        y = mixer(torch.from_numpy(reference_input(record["output_shape"], 3)), *config["token_size"])
    yield compare_operator("output", y, _output(record))


def _outnorm(name: str, x: Tensor) -> Tensor:
    weight, bias = (torch.from_numpy(fill(f"{name}.{kind}", (x.shape[1],))) for kind in ("weight", "bias"))
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), weight, bias, 1e-5).permute(0, 3, 1, 2)


def _backbone(record: dict) -> Iterator[Deviation]:
    """A backbone for dense prediction: norms of its own after each output, no final norm, no classifier."""
    config, indices = record["config"], record["out_indices"]
    weights = fill_state_dict(record["keys"], record)
    weights = {k: v for k, v in weights.items() if not k.startswith("outnorm")}
    if "dims" in config:
        model = LocalVMamba(**dict(localvmamba_args(config), num_classes=0)).eval()
        norm, outnorms = "classifier.norm", [f"outnorm{i}" for i in indices]
    else:
        model = LocalVim(**dict(localvim_args(config), num_classes=0), feature_stream=False).eval()
        norm, outnorms = "norm_f", [f"outnorm_{i}" for i in range(len(indices))]
    weights |= {f"{norm}.{name}": value for name, value in model.norm.state_dict().items()}
    model.load_state_dict(VisionModel.checkpoint_filter_fn(weights, model), strict=True)
    x = torch.from_numpy(reference_input(record["input_shape"], record["seed"]))
    with torch.no_grad():
        maps = model.forward_intermediates(x, indices=indices, intermediates_only=True)
    for outnorm, ours, expected in zip(outnorms, maps, record["outputs"], strict=True):
        yield compare_summary(expected["name"], _outnorm(outnorm, ours), expected)


OPERATORS = {
    "localmamba-scan_orders": _scan_orders,
    "localmamba-ss2d-*": _ss2d,
    "localmamba-mixer-*": _mixer,
    "localmamba-backbone-*": _backbone,
}
