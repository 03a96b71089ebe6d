"""Receptive fields, hidden attention, relevance and contributions against recorded runs of the original tools."""

import ast
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from visionssm.analysis.contributions import contributions, rollout
from visionssm.analysis.hidden_attention import _rows_and_gradients, class_token_relevance, hidden_attention
from visionssm.analysis.receptive_field import central_square, normalise, receptive_field
from visionssm.analysis.relevance import RULES, relevance
from visionssm.layers import BidirectionalMixer
from visionssm.models.vim import Vim

from . import (
    Case,
    Deviation,
    compare_operator,
    families,
    fill,
    fill_state_dict,
    reference_input,
    sample,
)


def _model(record: dict) -> nn.Module:
    """The small model of a record that carries the original's constructor and names."""
    name = "vmamba" if "ssm_ratio" in record["config"] else "vim"
    module = families()[name]
    config = {"norm_epsilon": 1e-5, "d_state": 16, "stride": 16, "patch_size": 16} | record["config"]
    config.setdefault("if_divide_out", config.get("if_devide_out", True))
    model = module.build(Case("", name, {"variant": "", "config": config}))
    source = fill_state_dict([(key, tuple(shape)) for key, shape in record["keys"]])
    model.load_state_dict(module.convert(source, model))
    return model


def _image(shape, seed: int = 0) -> Tensor:
    return torch.from_numpy(reference_input(tuple(shape), seed))


def _input(record: dict) -> Tensor:
    shape, seed = ast.literal_eval(record["input"].removeprefix("reference_input"))
    return _image(shape, seed)


def _array(entry: dict) -> np.ndarray:
    return np.array(entry["data"]).reshape(entry["shape"])


def _close(what: str, ours: Tensor, expected, tolerance: float) -> Deviation:
    """Compared with the largest recorded value."""
    expected = np.array(expected, dtype=np.float64)
    ours = ours.detach().double().numpy().reshape(expected.shape)
    return Deviation(what, float(np.abs(ours - expected).max()), tolerance * float(np.abs(expected).max()))


def _summary(what: str, ours: Tensor, entry: dict, tolerance: float) -> Deviation:
    """All recorded values, or the sample with mean and standard deviation, compared as by `_close`."""
    assert list(ours.shape) == entry["shape"], f"{what}: shape {list(ours.shape)}, recorded {entry['shape']}"
    if "data" in entry:
        return _close(what, ours, _array(entry), tolerance)
    values = ours.detach().double().numpy()
    found = [*sample(values, len(entry["sample"])), values.mean(), values.std()]
    return _close(what, torch.tensor(found), [*entry["sample"], entry["mean"], entry["std"]], tolerance)


def _mixer(record: dict) -> BidirectionalMixer:
    dim = next(shape[1] for key, shape in record["keys"] if key == "in_proj.weight")
    model = Vim(img_size=16, embed_dim=dim, depth=1, num_classes=0)
    prefix = "blocks.0.mixer."
    source = {f"layers.0.mixer.{key}": torch.from_numpy(fill(key, tuple(shape))) for key, shape in record["keys"]}
    rest = {k: v for k, v in model.state_dict().items() if not k.startswith(prefix)}
    model.load_state_dict(model.checkpoint_filter_fn(source | rest, model))
    return model.blocks[0].mixer.eval()


def _erf(record: dict) -> Iterator[Deviation]:
    model = _model(record)
    images = [_image(record["image_shape"], seed) for seed in record["seeds"]]
    maps = [receptive_field(model, image) for image in images]
    for i, (ours, total) in enumerate(zip(maps, record["sums"], strict=True)):
        yield Deviation(f"sum {i}", abs(float(ours.sum()) - total), 1e-4 * total)
    mean = receptive_field(model, images)
    summaries = [(f"map {i}", ours, entry) for i, (ours, entry) in enumerate(zip(maps, record["maps"], strict=True))]
    for name, ours, entry in [
        *summaries,
        ("mean", mean, record["mean"]),
        ("normalised", normalise(mean), record["normalised"]),
    ]:
        yield _summary(name, ours, entry, 1e-4)
    if mean.shape[0] == mean.shape[1]:
        for share, (side, area) in record["rectangles"].items():
            found = central_square(mean, float(share))
            yield Deviation(
                f"square of {share}", float(found is None or abs(found[0] - side) + abs(found[1] - area)), 1e-9
            )


def _matrix(record: dict) -> Iterator[Deviation]:
    mixer, x = _mixer(record), _image((2, 9, 8), 3)
    matrices = hidden_attention(mixer, x, 1, 8)
    for k, name in enumerate(("forward", "backward")):
        yield _close(name, matrices[:, k], np.array(record[name]).reshape(record["shape"]), 1e-5)
    yield _close("output", mixer(x, 1, 8), record["mixer_output"], 1e-5)


def _unified(record: dict) -> Iterator[Deviation]:
    mixer, x = _mixer(record), _input(record)
    matrices = hidden_attention(mixer, x, 1, x.shape[1] - 1, with_conv=True, with_gate=True)
    for k, name in enumerate(("forward", "backward")):
        yield _close(name, matrices[0, k], _array(record[name]), 1e-5)
    yield _close("output", mixer(x, 1, x.shape[1] - 1)[0], _array(record["output"]), 1e-5)


def _hidden_attention(record: dict) -> Iterator[Deviation]:
    model, image = _model(record), _image((1, 3, 224, 224))
    yield compare_operator("logits", model(image), np.array(record["logits"])[None], 1e-4)
    for start, maps in record["by_start_layer"].items():
        for method, expected in maps.items():
            ours = class_token_relevance(model, image, method, start=int(start), released=True)
            yield _close(f"{method} from block {start}", ours, np.array(expected).reshape(ours.shape), 1e-4)
    rows, gradients, _ = _rows_and_gradients(model, image, "raw", None, released=True)
    yield _close("mean rows", torch.stack(rows).mean(1), record["vectors_mean"], 1e-4)
    for name, found in (("vectors_sample", rows), ("gradients", gradients)):
        for ours, entry in zip(found, record[name], strict=True):
            yield _summary(f"{name} of {entry['name']}", ours, entry, 1e-4)


def _mambalrp(record: dict) -> Iterator[Deviation]:
    model = _model(record)
    images, targets = _image(record["input_shape"], record["seed"]), torch.tensor(record["targets"])
    found = relevance(model, images, targets)
    yield compare_operator("logits", found.logits, _array(record["logits"]), 1e-4)
    without = {"without_scan_rule": "scan", "without_gate_rule": "gate", "without_silu_rule": "activation"}
    for name in ("relevance", *without, "gradient_times_input"):
        rules = [rule for rule in RULES if rule != without.get(name)] if name != "gradient_times_input" else []
        ours = relevance(model, images, targets, rules=rules)
        yield _close(name, ours.values, _array(record[name]), 1e-3)
    for key, value in model.named_parameters():
        if key.endswith(("conv_bias", "dt_bias", "head.bias")):
            nn.init.zeros_(value)
    found = relevance(model, images, targets)
    yield compare_operator("logits without biases", found.logits, _array(record["zero_bias"]["logits"]), 1e-4)
    yield _close("zero bias", found.values, _array(record["zero_bias"]["relevance"]), 1e-3)
    yield Deviation("rest without biases", float(found.rest.abs().max()), 1e-4)


def _latim_mixer(record: dict) -> Iterator[Deviation]:
    mixer, x = _mixer(record), _input(record)
    found = contributions(mixer, x, 1, x.shape[1] - 1, reduce=None, chunk=4)
    yield _close("contributions", found.tensor[0], _array(record["contributions"]), 1e-5)
    yield _close("rest", found.rest[0], _array(record["rest"]), 1e-5)
    yield _close("output", mixer(x, 1, x.shape[1] - 1)[0], _array(record["output"]), 1e-5)
    yield _close(
        "norms", contributions(mixer, x, 1, x.shape[1] - 1, reduce="norm").matrix[0], _array(record["norms"]), 1e-5
    )


def _latim_model(record: dict) -> Iterator[Deviation]:
    model, image = _model(record), _image(record["input_shape"], record["seed"])
    x, grid = model.embed(image)
    for i, expected in enumerate(record["blocks"]):
        matrix = contributions(lambda s, i=i: model.run_block(i, s, grid), x).matrix
        yield _close(f"block {i}", matrix[0], np.array(expected).reshape(matrix.shape[1:]), 1e-4)
        x = model.run_block(i, x, grid)
    yield compare_operator("logits", model(image)[0], record["logits"], 1e-4)
    ours = rollout(model, image)[0]
    yield _close("rollout", ours, np.array(record["rollout"]).reshape(ours.shape), 1e-4)


OPERATORS = {
    "erf-*": _erf,
    "hiddenattention-matrix*": _matrix,
    "hiddenattention-vim*": _hidden_attention,
    "unified-mixer*": _unified,
    "mambalrp-*": _mambalrp,
    "latim-mixer*": _latim_mixer,
    "latim-model*": _latim_model,
}
