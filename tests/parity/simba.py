"""SiMBA against the recorded runs of the original."""

from collections.abc import Callable, Iterator

import numpy as np
import timm
import torch
from torch import Tensor, nn

import visionssm  # noqa: F401
from visionssm.layers import MambaMixer
from visionssm.models._builder import VisionModel
from visionssm.models.simba import EinFFT, SiMBA

from . import Case, Deviation, compare_operator, fill_state_dict, reference_input, registered_names, tolerances

RECORDS = ("simba_*",)
FAST = ("simba_s-64x96",)


def build(case: Case) -> SiMBA:
    if case.full_size:
        return timm.create_model(registered_names()[case.variant]).eval()
    config = case.config
    return SiMBA(
        num_classes=config.get("num_classes", 1000),
        dims=config["embed_dims"],
        depths=config["depths"],
        mlp_ratios=config["mlp_ratios"],
        stem_dim=config["stem_hidden_dim"],
        channel_mixer=config["channel_mixer"].lower(),
        token_label=config["token_label"],
        drop_path_rate=config.get("drop_path_rate", 0.0),
    ).eval()


def convert(state_dict: dict[str, Tensor], model: SiMBA) -> dict[str, Tensor]:
    return VisionModel.checkpoint_filter_fn(state_dict, model)


def outputs(model: SiMBA, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, stages = model.forward_intermediates(x)
    out = {f"stage{i}": stage for i, stage in enumerate(stages)}
    tokens = [model.head.class_token(final).unsqueeze(1)]
    if model.head.token_label:
        tokens.append(model.head.norm(final).flatten(1, 2))
    out["tokens"] = torch.cat(tokens, 1)
    out["logits"] = model.forward_head(final)
    return out


def compare_layer(what: str, record: dict, layer: nn.Module, prefix: str, call: Callable) -> Iterator[Deviation]:
    """Compare a layer with a recorded one, gradients included; `prefix` stands before its names in a model."""
    leaves = {k: v.requires_grad_() for k, v in fill_state_dict(record["keys"], record).items()}
    ours = "stages.0.blocks.0." + ("mixer." if "attn" in prefix else "mlp.")
    shapes = {ours + k: v.shape for k, v in layer.state_dict().items()}
    converted = SiMBA.layout.convert({prefix + k: v for k, v in leaves.items()}, shapes)
    weights = {k.removeprefix(ours): v for k, v in converted.items()}
    assert set(weights) == set(layer.state_dict())
    x = torch.from_numpy(reference_input(record["input_shape"], record["input_seed"])).requires_grad_()
    y = call(lambda *args: torch.func.functional_call(layer, weights, args, strict=True), x)
    yield compare_operator(what, y, np.array(record["output"]).reshape(y.shape))
    loss = (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
    grads = torch.autograd.grad(loss, [x, *leaves.values()])
    expected = np.array(record["grad_input"]).reshape(x.shape)
    yield compare_operator(f"{what}, gradient of the input", grads[0], expected, tolerances.GRADIENTS)
    for name, grad in zip(leaves, grads[1:], strict=True):
        norm = record["grad_param_l2"][name]
        yield Deviation(f"{what}, gradient of {name}", abs(float(grad.norm()) - norm), tolerances.GRADIENTS * norm)


def _blocks(record: dict) -> Iterator[Deviation]:
    case = record["einfft"]
    yield from compare_layer(
        "EinFFT", case, EinFFT(case["dim"]), "block1.0.mlp.", lambda layer, x: layer(x.unsqueeze(1)).squeeze(1)
    )
    case = record["mamba1d"]
    config = case["config"]
    mixer = MambaMixer(config["d_model"], "raster", config["d_state"], config["d_conv"], config["expand"])
    yield from compare_layer("mixer", case, mixer, "block1.0.attn.mamba.", lambda layer, x: layer(x, 1, x.shape[1]))


OPERATORS = {"simba-blocks": _blocks}
