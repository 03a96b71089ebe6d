"""VMamba against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import timm
import torch
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.layers import SS2D, PatchMerging
from visionssm.models._builder import VisionModel
from visionssm.models.vmamba import VMamba
from visionssm.ops import selective_scan
from visionssm.scans import scan_table

from . import (
    Case,
    Deviation,
    compare_operator,
    dense_outputs,
    dense_weights,
    fill,
    is_dense,
    reference_input,
    registered_names,
)

RECORDS = ("vmamba_*", "vanilla_vmamba_*")
FAST = ("vmamba_tiny_s1l8",)


def model_args(config: dict) -> dict:
    """Arguments of our model for those of the original's constructor."""
    stems = {"v1": "patch", "v2": "conv"}
    downsamples = {"v1": "merge", "v3": "conv"}
    return dict(
        in_chans=config["in_chans"],
        num_classes=config["num_classes"],
        dims=config["dims"],
        depths=config["depths"],
        d_state=config["ssm_d_state"],
        ssm_ratio=config["ssm_ratio"],
        gated=not config["forward_type"].endswith("_noz"),
        conv_bias=config["ssm_conv_bias"],
        mlp_ratio=config["mlp_ratio"],
        stem=stems[config["patchembed_version"]],
        downsample=downsamples[config["downsample_version"]],
        drop_path_rate=config["drop_path_rate"],
    )


def build(case: Case) -> VMamba:
    if case.full_size:
        return timm.create_model(registered_names()[case.variant]).eval()
    args = model_args(case.config)
    return VMamba(**dict(args, num_classes=0) if is_dense(case) else args).eval()


def convert(state_dict: dict[str, Tensor], model: VMamba) -> dict[str, Tensor]:
    if any(k.startswith("outnorm") for k in state_dict):
        state_dict = dense_weights(state_dict, model)
    return VisionModel.checkpoint_filter_fn(state_dict, model)


def outputs(model: VMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    if is_dense(case):
        return dense_outputs(stages)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    out["patch_embed"] = model.stem(x).permute(0, 3, 1, 2)
    out["logits"] = model.forward_head(final)
    return out


def _fill(keys) -> dict[str, Tensor]:
    return {name: torch.from_numpy(fill(name, shape)) for name, shape in keys}


def _recorded(entry: dict) -> np.ndarray:
    return np.array(entry["data"]).reshape(entry["shape"])


def _ss2d(record: dict) -> Iterator[Deviation]:
    for case in record["cases"]:
        config = case["config"]
        dim, gated = config["d_model"], not config["forward_type"].endswith("_noz")
        mixer = SS2D(
            dim,
            int(config["ssm_ratio"] * dim),
            config["d_state"],
            dt_rank=-(-dim // 16),
            gated=gated,
            conv_bias=config.get("conv_bias", True),
            norm_layer=torch.nn.LayerNorm,
        )
        weights = _fill(case["keys"])
        names = dict(
            x_proj_weight="ssm.x_proj_weight",
            A_logs="ssm.A_log",
            Ds="ssm.D",
            dt_projs_weight="ssm.dt_weight",
            dt_projs_bias="ssm.dt_bias",
        )
        own = mixer.state_dict()
        converted = {names.get(k, k.replace("conv2d.", "conv.")): v for k, v in weights.items()}
        mixer.load_state_dict({k: v.reshape(own[k].shape) for k, v in converted.items()}, strict=True)
        x = torch.from_numpy(reference_input(case["input_shape"], case["input_seed"]))
        nchw = case["layout"] == "NCHW"
        with torch.no_grad():
            y = mixer(x.permute(0, 2, 3, 1) if nchw else x)
            y = y.permute(0, 3, 1, 2) if nchw else y
        yield compare_operator(f"{config['forward_type']} {case['layout']}", y, _recorded(case["output"]))


def _patch_merging(record: dict) -> Iterator[Deviation]:
    for case in record["cases"]:
        weights = _fill(case["keys"])
        dim_out, dim4 = weights["reduction.weight"].shape
        layer = PatchMerging(dim4 // 4, dim_out, norm_layer=torch.nn.LayerNorm)
        layer.load_state_dict(weights, strict=True)
        x = torch.from_numpy(reference_input(case["input_shape"], case["input_seed"]))
        nchw = case["channel_first"]
        with torch.no_grad():
            y = layer(x.permute(0, 2, 3, 1) if nchw else x)
        yield compare_operator(
            f"input {case['input_shape']}", y.permute(0, 3, 1, 2) if nchw else y, _recorded(case["output"])
        )


def _cross_scan(record: dict) -> Iterator[Deviation]:
    for table in record["tables"]:
        height, width = table["H"], table["W"]
        ours = scan_table("cross", height, width)
        yield compare_operator(f"{height} x {width}", ours, np.array(table["routes"]), 0.0)
    # the merge is the sum of the routes by token: the scan of states that forget at once, with B = 1/delta and C = 1
    sequences = torch.from_numpy(reference_input((2, 4, 3, 4, 6), seed=11)).flatten(3).permute(0, 3, 1, 2)
    order = scan_table("cross", 4, 6)
    ones = torch.ones(2, 24, 4, 1)
    y = selective_scan(
        sequences,
        torch.full((2, 24, 4, 3), 100.0),
        torch.full((4, 3, 1), -100.0),
        ones / 100,
        ones,
        order=order,
        num_tokens=24,
        u_index="step",
        index="step",
    )
    yield compare_operator("merge", y.permute(0, 2, 1), _recorded(record["merge"]["output"]))


def _selective_scan(record: dict) -> Iterator[Deviation]:
    batch, routes, c, states, length = (record["shapes"][k] for k in ("B", "K", "c", "N", "L"))

    u, delta, b, grad = (
        torch.from_numpy(reference_input(shape, seed))
        for shape, seed in (
            ((batch, routes * c, length), 21),
            ((batch, routes * c, length), 22),
            ((batch, routes, states, length), 23),
            ((batch, routes * c, length), 28),
        )
    )
    C = torch.from_numpy(reference_input((batch, routes, states, length), 24))
    A = -torch.exp(0.5 * torch.from_numpy(reference_input((routes * c, states), 25)))
    D, bias = (torch.from_numpy(reference_input((routes * c,), seed)) for seed in (26, 27))
    leaves = dict(u=u, delta=delta, A=A, B=b, C=C, D=D, delta_bias=bias)
    for t in leaves.values():
        t.requires_grad_()

    def by_token(t):
        return t.reshape(batch, routes, -1, length).permute(0, 3, 1, 2)

    y = (
        selective_scan(
            by_token(u),
            by_token(delta),
            A.view(routes, c, states),
            by_token(b),
            by_token(C),
            D.view(routes, c),
            bias.view(routes, c),
            out="route",
        )
        .permute(0, 2, 3, 1)
        .flatten(1, 2)
    )
    yield compare_operator("output", y, _recorded(record["output"]))
    grads = torch.autograd.grad((y * grad).sum(), list(leaves.values()))
    for (name, _), value in zip(leaves.items(), grads, strict=True):
        yield compare_operator(f"gradient of {name}", value, _recorded(record["grads"][name]))


OPERATORS = {
    "vmamba-ss2d": _ss2d,
    "vmamba-patch_merging": _patch_merging,
    "vmamba-cross_scan": _cross_scan,
    "vmamba-selective_scan": _selective_scan,
}
