"""Methods applied to models against recorded runs of the original tools."""

import ast
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from visionssm.compression.quantization import Quantizer
from visionssm.compression.shedding import Shedding, shed, without
from visionssm.models.vim import Vim
from visionssm.pretraining.interpolation import interpolate_tokens
from visionssm.pretraining.masking import cell_errors, reconstruction_loss

from . import Case, Deviation, compare_operator, families, fill_state_dict, reference_input
from .tolerances import LOGITS


def _input(text: str) -> Tensor:
    """What "reference_input((2, 5), 35) + 3.0" says; the addend may be missing."""
    call, _, shift = text.partition(" + ")
    shape, seed = ast.literal_eval(call.removeprefix("reference_input"))
    return torch.from_numpy(reference_input(shape, seed)) + float(shift or 0)


def _array(entry: dict) -> np.ndarray:
    return np.array(entry["data"]).reshape(entry["shape"])


def _vim(record: dict) -> Vim:
    module = families()["vim"]
    model = module.build(Case("", "vim", {"variant": "", "config": record["config"]}))
    source = fill_state_dict([(key, tuple(shape)) for key, shape in record["keys"]])
    model.load_state_dict(module.convert(source, model))
    return model


def _shedding(record: dict) -> Iterator[Deviation]:
    images = torch.from_numpy(reference_input(tuple(record["input_shape"]), record["seed"]))
    loader = [(images, torch.tensor(record["labels"]))]
    model = _vim(record)
    for kind, path in (("block", "blocks.{}"), ("ssm", "blocks.{}.mixer.ssm")):
        whole, *steps = record[kind]["steps"]
        found: Shedding = shed(model, loader, len(steps), kind=kind)
        yield Deviation(f"{kind}, whole model", abs(found.whole - whole["loss"]), 1e-5)
        for i, (ours, step) in enumerate(zip(found.steps, steps, strict=True)):
            expected = {path.format(block): loss for block, loss in step["candidates"].items()}
            assert ours.candidates.keys() == expected.keys(), "other candidates than recorded"
            worst = max(abs(ours.candidates[name] - loss) for name, loss in expected.items())
            yield Deviation(f"{kind}, losses of step {i}", worst, 1e-5)
            yield Deviation(f"{kind}, choice of step {i}", float(ours.removed != path.format(step["removed"][-1])), 0.0)
        with torch.no_grad(), without(model, found.removed):
            expected = _array(record[kind]["logits"])
            yield compare_operator(f"{kind}, logits", model(images[: len(expected)]), expected, LOGITS)


def _quantizer(record: dict) -> Iterator[Deviation]:
    for kind in ("weights", "activations"):
        for i, case in enumerate(record[kind]):
            x = _input(case["input"])
            quantizer = Quantizer(case["bits"], case.get("axis"))
            for data in map(_input, case.get("calibration", [case["input"]])):
                quantizer.observe(data)
            yield compare_operator(f"{kind} {i}", quantizer(x), _array(case["output"]), 1e-6)
            yield compare_operator(f"{kind} {i}, step", quantizer.scale, case["scale"], 1e-6)
            yield compare_operator(f"{kind} {i}, zero", quantizer.zero, case["zero"], 0.0)


def _interpolation(record: dict) -> Iterator[Deviation]:
    dim, side, seed = record["channels"], record["side"], record["seed"]
    transition = 0.5 * torch.from_numpy(reference_input((1, dim, dim), seed))[0] / dim**0.5
    x = torch.from_numpy(reference_input((1, dim, side, side, side), seed + 1)).flatten(2).mT
    visible = torch.zeros(1, side**3, dtype=torch.bool)
    visible[0, record["kept"]] = True
    yield compare_operator("tokens", interpolate_tokens(x, visible, transition)[0], _array(record["tokens"]))


def _loss(record: dict) -> Iterator[Deviation]:
    cell, seed, size = record["ratio"], record["seed"], record["side"] * record["ratio"]
    image, found = (torch.from_numpy(reference_input((2, 1, size, size, size), seed + i)) for i in range(2))
    yield compare_operator("errors", cell_errors(found, image, cell), _array(record["per_patch"]))
    visible = torch.tensor(record["active"]).bool()
    yield compare_operator("loss", reconstruction_loss(found, image, visible, cell), record["loss"])


OPERATORS = {
    "mambamim-interpolation-*": _interpolation,
    "mambamim-loss-*": _loss,
    "mambaquant-quantizer-*": _quantizer,
    "mambashedder-*": _shedding,
}
