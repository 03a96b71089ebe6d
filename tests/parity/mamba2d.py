"""Mamba2D against the recorded runs of the original."""

import math
from collections.abc import Iterator

import numpy as np
import timm
import torch
from timm.layers import Mlp
from torch import Tensor, nn

import visionssm  # noqa: F401
from visionssm.models.mamba2d import Mamba2D, MapAttention, ScaledBlock, WavefrontMixer
from visionssm.ops import wavefront_scan

from . import Case, Deviation, compare_operator, fill, reference_input, registered_names, tolerances

RECORDS = ("mamba2d_*",)
FAST = ("mamba2d_nano-64x96",)
_MIXERS = {"2D": "wavefront", "2D_local": "wavefront_local", "Attention": "attention", "RopeAttention": "attention"}


def model_args(config: dict) -> dict:
    """Arguments of our model for those of the original's constructors."""
    backbone, head = config["backbone"], config["head"]
    assert backbone["ds_stages"] == ["mf_stem", "mf_2", "mf_2", "mf_2"]
    return dict(
        release=config["release"],
        in_chans=backbone["in_channels"],
        dims=backbone["embed_dim"],
        depths=backbone["n_blocks"],
        mixers=[_MIXERS[mixer] for mixer in backbone["token_mixer"]],
        scaled=[init is not None for init in backbone["res_scale_init_values"]],
        flip=backbone.get("inter_flip", False),
        drop_path_rate=backbone["drop_path_rate"],
        num_classes=head["n_classes"],
        drop_rate=head["head_dropout"],
    )


def build(case: Case) -> Mamba2D:
    if case.full_size:
        return timm.create_model(registered_names()[case.variant]).eval()
    return Mamba2D(**model_args(case.config)).eval()


def convert(state_dict: dict[str, Tensor], model: Mamba2D) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: Mamba2D, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    return out | {"stem": model.stem(x).permute(0, 3, 1, 2), "logits": model.forward_head(final)}


def _scan(record: dict) -> Iterator[Deviation]:
    for case in record["cases"]:
        shapes = case["shapes"]
        leaves = [torch.tensor(v).view(shapes[name]).requires_grad_() for name, v in case["inputs"].items()]
        y = wavefront_scan(*leaves)
        yield compare_operator(f"output of {shapes['x']}", y, np.array(case["y"]).reshape(y.shape))
        loss = (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        for name, grad in zip(case["inputs"], grads, strict=True):
            recorded = np.array(case["grads"][name]).reshape(grad.shape)
            yield compare_operator(f"gradient of {name} of {shapes['x']}", grad, recorded)


def _layer(config: dict) -> tuple[nn.Module, str]:
    """A recorded layer, and what stands before its names in a block."""
    if "head_dim" in config:
        return MapAttention(config["dim"]), "token_mixer."
    dim = config.get("d_model", config.get("embed_dim"))
    expand = config.get("expand", 1)
    mixer = WavefrontMixer(
        dim,
        expand * dim,
        config.get("d_state", 16),
        math.ceil(dim / 16),
        local=config.get("local_path", False) or config.get("token_mixer") == "2D_local",
        flip=config.get("scan_start") == "BR",
        shared_B=expand == 2,
    )
    if "d_model" in config:
        return mixer, "token_mixer."
    return ScaledBlock(dim, nn.LayerNorm(dim), mixer, nn.LayerNorm(dim), Mlp(dim, 4 * dim)), ""


def _blocks(record: dict) -> Iterator[Deviation]:
    for name, case in record["cases"].items():
        layer, prefix = _layer(case["config"])
        ours = Mamba2D.layout.rename("stages.0.0." + prefix + "x")[:-1]
        weights = {
            Mamba2D.layout.rename("stages.0.0." + prefix + key).removeprefix(ours): torch.from_numpy(fill(key, shape))
            for key, shape in case["keys"]
        }
        layer.load_state_dict(weights, strict=True)
        names = {  # of ours, by the recorded ones
            key: Mamba2D.layout.rename("stages.0.0." + prefix + key).removeprefix(ours) for key in case["grad_param_l2"]
        }
        x = torch.from_numpy(reference_input(tuple(case["input_shape"]), case["input_seed"])).requires_grad_()
        y = layer(x)
        yield compare_operator(name, y, np.array(case["output"]).reshape(y.shape))
        leaves = [layer.get_parameter(key) for key in names.values()]
        loss = (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
        grad, *grads = torch.autograd.grad(loss, [x, *leaves])
        yield compare_operator(f"gradient of {name}", grad, np.array(case["grad_input"]).reshape(grad.shape))
        norms = case["grad_param_l2"]
        for (key, norm), found in zip(norms.items(), grads, strict=True):
            allowed = max(tolerances.GRADIENTS * norm, tolerances.GRADIENT_FLOOR * max(norms.values()))
            yield Deviation(f"gradient norm of {key} of {name}", abs(float(found.norm()) - norm), allowed)


OPERATORS = {"mamba2d-scan": _scan, "mamba2d-blocks": _blocks, "mamba2d-blocks-v1": _blocks}
