"""Hydra's mixer against the recorded runs of the original; there is no original vision model."""

from collections.abc import Iterator

import numpy as np
import torch

from visionssm.models.hydra import HydraMixer
from visionssm.ops import quasi_separable_ssd

from . import Deviation, compare_operator, fill, reference_input, sample, tolerances

RECORDS = ()
_NAMES = {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias", "fc_D.weight": "D_proj.weight"}


def _mixer(record: dict) -> Iterator[Deviation]:
    for name, case in record.items():
        yield from _case(name, case)
        if "matrix" in case:
            yield _matrix(case)


def _build(case: dict) -> tuple[HydraMixer, torch.Tensor]:
    """The mixer with its recorded weights, and its recorded input."""
    config = case["config"]
    mixer = HydraMixer(
        config["d_model"],
        config["d_state"],
        config["d_conv"],
        config["expand"],
        config["headdim"],
        config.get("ngroups", 1),
    )
    weights = {_NAMES.get(key, key): torch.from_numpy(fill(key, tuple(shape))) for key, shape in case["keys"]}
    mixer.load_state_dict(weights, strict=True)
    return mixer, torch.from_numpy(reference_input(case["input_shape"], case["seed"])).requires_grad_()


def _case(name: str, case: dict) -> Iterator[Deviation]:
    mixer, x = _build(case)
    y = mixer(x, 1, x.shape[1])
    yield compare_operator(f"{name}: output", y, np.reshape(case["output"], case["output_shape"]))
    loss = (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
    parameters = dict(mixer.named_parameters())
    grads = torch.autograd.grad(loss, [x, *parameters.values()])
    yield compare_operator(f"{name}: gradient of the input", grads[0], np.reshape(case["input_grad"], x.shape))
    grads = dict(zip(parameters, grads[1:], strict=True))
    largest = max(recorded["l2"] for recorded in case["params_grad"].values())
    for key, recorded in case["params_grad"].items():
        grad = grads[_NAMES.get(key, key)].numpy()
        floor = tolerances.GRADIENT_FLOOR * largest
        norm = abs(float(np.linalg.norm(grad)) - recorded["l2"])
        yield Deviation(f"{name}: gradient norm of {key}", norm, max(tolerances.GRADIENTS * recorded["l2"], floor))
        values = np.abs(sample(grad, len(recorded["sample"])) - recorded["sample"]).max()
        yield Deviation(f"{name}: gradient of {key}", float(values), max(tolerances.GRADIENTS * recorded["l2"], floor))


def _matrix(case: dict) -> Deviation:
    """Every token in turn as a unit vector, in as many channels of a head as there are tokens."""
    mixer, x = _build(case)
    with torch.no_grad():
        z_size, heads = mixer.splits[0], mixer.heads
        _, xbc, dt = mixer.in_proj(x[:1]).split((z_size, sum(mixer.splits), 2 * heads), dim=-1)
        u, bc = mixer.act(mixer.conv(xbc.mT)).mT.split(mixer.splits, dim=-1)
        bc = bc.unflatten(-1, (2, 2, 1, mixer.d_state))
        length = x.shape[1]
        units = torch.eye(length)[None, :, None].expand(1, length, heads, length)
        y = quasi_separable_ssd(
            units,
            dt.unflatten(-1, (2, heads)),
            -mixer.A_log.exp(),
            bc[:, :, :, 0],
            bc[:, :, :, 1],
            mixer.D + mixer.D_proj(u),
            mixer.dt_bias,
            chunk=4,
        )
    return compare_operator(
        "mixing matrix", y[0].transpose(0, 1), np.reshape(case["matrix"]["data"], [heads, length, length])
    )


OPERATORS = {"hydra-mixer": _mixer}
