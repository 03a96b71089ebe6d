"""ShuffleMamba against the recorded runs of the original."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

import visionssm  # noqa: F401
from visionssm.models.shufflemamba import ShuffleMamba

from . import (
    Case,
    Deviation,
    compare_operator,
    compare_summary,
    create,
    fill_state_dict,
    reference_input,
    tolerances,
)

RECORDS = ("shufflemamba_*",)


def model_args(config: dict) -> dict:
    """Arguments of our model for those of the original's constructor."""
    return dict(
        img_size=config["img_size"],
        patch_size=config["patch_size"],
        num_classes=config["num_classes"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        drop_path_rate=config["drop_path_rate"],
        norm_layer="rmsnorm" if config["rms_norm"] else "layernorm",
        shuffle_rate=config["shuffle_rate"],
    )


def build(case: Case) -> ShuffleMamba:
    if case.full_size:
        return create(case)
    return ShuffleMamba(**model_args(case.config)).eval()


def convert(state_dict: dict[str, Tensor], model: ShuffleMamba) -> dict[str, Tensor]:
    return model.checkpoint_filter_fn(state_dict, model)


def outputs(model: ShuffleMamba, x: Tensor, case: Case) -> dict[str, Tensor]:
    final, streams = model.forward_intermediates(x, return_prefix_tokens=True)
    out = {"patch_embed": model.patch_embed(x).permute(0, 3, 1, 2), "features": final[:, 0]}
    for i, (patches, token) in enumerate(streams):
        out[f"layers.{i}"] = patches
        out[f"layers.{i}.cls"] = token[:, 0]
    out["logits"] = model.forward_head(final)
    return out


def _fixed_stream(record: dict) -> Iterator[Deviation]:
    """One training step with the original's draws and permutations."""
    model = ShuffleMamba(**model_args(record["config"]))
    yield compare_operator("rates", torch.tensor(model.shuffle_rates), np.array(record["rates"]), 1e-6)
    source = fill_state_dict([(name, tuple(shape)) for name, shape in record["keys"]])
    source = {name: value.requires_grad_() for name, value in source.items()}
    weights = model.checkpoint_filter_fn(source, model)

    def draw_order(block: int, length: int, device: torch.device) -> Tensor:
        shuffled = record["draws"][block] < model.shuffle_rates[block]
        assert shuffled == record["shuffled"][block]
        return torch.tensor(record["permutations"][block]) if shuffled else torch.arange(length)

    model.draw_order = draw_order
    x = torch.from_numpy(reference_input(record["input_shape"], record["seed"])).requires_grad_()
    logits = torch.func.functional_call(model.train(), weights, (x,))
    expected = np.array(record["logits"]).reshape(record["logits_shape"])
    yield compare_operator("logits", logits.detach(), expected, tolerances.LOGITS)
    loss = (logits * torch.from_numpy(reference_input(tuple(logits.shape), seed=7))).sum()
    grad, *found = torch.autograd.grad(loss, [x, *source.values()])
    yield compare_summary("gradient of the input", grad, record["grads"]["input"], tolerances.GRADIENTS)
    grads = dict(zip(source, found, strict=True))
    norms = record["grads"]["param_l2"]
    for name, norm in norms.items():
        allowed = max(tolerances.GRADIENTS * norm, tolerances.GRADIENT_FLOOR * max(norms.values()))
        yield Deviation(f"gradient norm of {name}", abs(float(grads[name].double().norm()) - norm), allowed)
    model.load_state_dict({name: value.detach() for name, value in weights.items()})
    with torch.no_grad():
        expected = np.array(record["logits_eval"]).reshape(record["logits_shape"])
        yield compare_operator("logits in evaluation", model.eval()(x), expected, tolerances.LOGITS)


OPERATORS = {"shufflemamba-fixed_stream": _fixed_stream}
