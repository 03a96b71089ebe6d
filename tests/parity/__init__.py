"""Recorded outputs of the original programs, and how ours compare.

A family adds one module to this package with

- `RECORDS`: patterns of the recorded models (tests/data/goldens) it answers for, without those of `OPERATORS`;
- `build(case)`: our model for a case, in evaluation mode, weights not filled;
- `convert(state_dict, model)`: from the original's parameter names to ours, differentiable (the checkpoint filter);
- `outputs(model, x, case)`: a dict with "logits" (unless the case has none), or the recorded outputs by their names,
  and every recorded stage, laid out as recorded; x is a list of maps where those were recorded instead of an image;
- `OPERATORS` (optional): a dict from the name of a file in tests/data/ops or goldens, or a pattern of names, to a
  function that takes its content and yields deviations: parts of models, and methods applied to them;
- `FAST` (optional): full-size cases that the fast tier runs;
- `GRADIENT_FLOOR` (optional): instead of that of tolerances.py, and why;
- `TOLERANCE` (optional): of logits, outputs and stages, instead of those of tolerances.py, and why;
- `DTYPE` (optional): what the model is run in, instead of float32, and why;
- `defect(case)` (optional): what differs in a case recorded with a defect of the original, which must not match;
  "" in others.

Weights are functions of the original's parameter names. They are filled as leaves of the autograd graph and converted
by the family's checkpoint filter, so gradients come back under the original's names whatever the filter does.
"""

import fnmatch
import importlib
import json
import pkgutil
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import tolerances

DATA = Path(__file__).resolve().parent.parent / "data"
sys.path.insert(0, str(DATA))
from reference_weights import fill, reference_input, sample  # noqa: E402

__all__ = [
    "DATA",
    "Case",
    "Deviation",
    "cases",
    "compare",
    "compare_operator",
    "compare_part",
    "compare_recorded_operator",
    "compare_summary",
    "create",
    "defect",
    "dense_outputs",
    "dense_weights",
    "families",
    "fill",
    "fill_state_dict",
    "is_dense",
    "keys_of",
    "not_compared",
    "operators",
    "reference_input",
    "registered_names",
    "sample",
    "unclaimed",
    "use_records",
]


@dataclass(frozen=True)
class Deviation:
    """One compared quantity: the largest difference found, and the largest allowed."""

    what: str
    measured: float
    allowed: float

    @property
    def ok(self) -> bool:
        return bool(self.measured <= self.allowed)  # False for NaN


@dataclass(frozen=True)
class Case:
    """One recorded run of an original model."""

    name: str
    family: str
    source: Path | dict  # a damaged file says so when it is read

    @cached_property
    def record(self) -> dict:
        """What was recorded."""
        return self.source if isinstance(self.source, dict) else _content(self.source)

    @property
    def variant(self) -> str:
        return self.record["variant"]

    @property
    def config(self) -> Any:
        """Arguments of the original's constructor, or those known of the variant; of some published ones none are."""
        if "config" in self.record or not _lookup("keys", f"{self.variant}.json").is_file():
            return self.record.get("config")
        return keys_of(self.variant).get("config")

    @property
    def full_size(self) -> bool:
        return self.variant in registered_names()

    @property
    def input(self) -> Tensor:
        return torch.from_numpy(reference_input(self.record["input_shape"], self.record["seed"]))

    @property
    def inputs(self) -> list[Tensor]:
        """The image, or the maps where a decoder was recorded."""
        if "input_maps" not in self.record:
            return [self.input]
        return [torch.from_numpy(reference_input(m["shape"], m["seed"])) for m in self.record["input_maps"]]

    @property
    def keys(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the original's parameters and buffers."""
        keys = self.record.get("keys") or keys_of(self.variant)["keys"]
        return [(name, tuple(shape)) for name, shape in keys]


_COMPARED = {"logits", "logits_shape", "stages", "outputs", "output_before_sigmoid", "output_shape", "loss", "grads"}
_COMPARED |= {"token_idx", "register_positions"}  # by the family
# how it was made, and the original's own rounding
_DESCRIBING = {"variant", "family", "input_shape", "input_maps", "seed", "config", "keys", "params", "note", "aliases"}
_DESCRIBING |= {"not_filled", "fill_scale", "zero_filled_suffixes", "directions", "fp64_max_abs_diff"}
_DESCRIBING |= {"fp64_stage_max_abs_diff", "scan_float64_max_abs_diff", "what"}
_records = DATA  # the folder whose goldens/ and ops/ are compared


def use_records(folder: Path) -> None:
    """Compare the records of another folder of the same layout; what it has not, names and keys, is looked up in ours.

    Raises:
        FileNotFoundError: the folder has neither goldens/ nor ops/.
    """
    global _records
    if not any((folder / part).is_dir() for part in ("goldens", "ops")):
        raise FileNotFoundError(f"{folder} has no goldens/ and no ops/ with recorded cases")
    _records = folder
    for cached in (registered_names, keys_of, cases, operators):
        cached.cache_clear()


def _content(path: Path) -> dict:
    """What a file of records holds.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # neither JSON nor text
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a record")
    return content


def _lookup(*parts: str) -> Path:
    path = _records.joinpath(*parts)
    return path if path.is_file() else DATA.joinpath(*parts)


@cache
def registered_names() -> dict[str, str]:
    """Recorded variant to the name of our model."""
    return _content(DATA / "names.json") | _content(_lookup("names.json"))


@cache
def keys_of(variant: str) -> dict:
    """Names, shapes and parameter count of a published variant."""
    return _content(_lookup("keys", f"{variant}.json"))


def create(case: Case) -> nn.Module:
    """The registered model of a published variant, built for the size that its positions were recorded at."""
    name = registered_names()[case.variant]
    size = tuple(case.record["input_shape"][2:])
    model = timm.create_model(name, device="meta")
    bound = hasattr(model, "set_input_size") and not hasattr(model, "pos_embed")  # to the size it is built for
    recorded = next((shape for key, shape in case.keys if key.split(".")[-1] == "pos_embed"), None)
    resized = recorded is not None and tuple(recorded) != tuple(model.pos_embed.shape)
    return timm.create_model(name, **({"img_size": size} if bound or resized else {})).eval()


def operator_record(name: str) -> dict:
    """What was recorded of an operator."""
    path = next(path for part in ("ops", "goldens") if (path := _records / part / f"{name}.json").is_file())
    return _content(path)


def unclaimed() -> list[str]:
    """Recorded cases and operators that no family answers for."""
    found = {path.stem for part in ("goldens", "ops") for path in (_records / part).glob("*.json")}
    return sorted(found - set(cases()) - set(operators()))


@cache
def families() -> dict[str, ModuleType]:
    """The modules of this package that stand for a family."""
    names = (m.name for m in pkgutil.iter_modules(__path__))
    return {
        name: importlib.import_module(f"{__name__}.{name}")
        for name in names
        if name != "tolerances" and not name.startswith("test_")
    }


@cache
def cases() -> dict[str, Case]:
    """Every recorded run that a family answers for."""
    found = {}
    for path in sorted((_records / "goldens").glob("*.json")):
        for family, module in families().items():
            if path.stem in operators():
                continue
            if any(fnmatch.fnmatch(path.stem, pattern) for pattern in getattr(module, "RECORDS", ())):
                found[path.stem] = Case(path.stem, family, path)
    return found


@cache
def operators() -> dict[str, str]:
    """Every recorded operator that a family answers for -> the family."""
    found = {}
    for path in sorted([*_records.glob("ops/*.json"), *_records.glob("goldens/*.json")]):
        for family, module in families().items():
            if _comparison(module, path.stem) is not None:
                found[path.stem] = family
    return found


def _comparison(module: ModuleType, name: str) -> Callable[[dict], Iterator["Deviation"]] | None:
    known = getattr(module, "OPERATORS", {})
    patterns = [*known, *(f"{p}[-_]*" for p in known)]  # further records of an operator have a longer name
    found = next((p for p in patterns if fnmatch.fnmatch(name, p)), None)
    return None if found is None else known[found.removesuffix("[-_]*")]


def compare_recorded_operator(name: str) -> Iterator["Deviation"]:
    """Run ours on a recorded operator; yields how far it is from it."""
    comparison = _comparison(families()[operators()[name]], name)
    assert comparison is not None
    return comparison(operator_record(name))


def fill_state_dict(
    keys: list[tuple[str, tuple[int, ...]]],
    record: dict | None = None,
    leaves: Container[str] = (),
) -> dict[str, Tensor]:
    """The deterministic weights of a recorded run under the original's names, without the buffers it computed.

    Args:
        keys: Names and shapes.
        record: The recorded run; it may scale, zero or leave out entries.
        leaves: Names that require a gradient.
    """
    record = record or {}
    out: dict[str, Tensor] = {}
    aliases = record.get("aliases", {})
    for name, shape in keys:
        if name in record.get("not_filled", ()) or name in aliases:
            continue
        value = fill(name, shape)
        for suffix, factor in record.get("fill_scale", {}).items():
            if name.endswith(suffix):
                value = (value * factor).astype(value.dtype)
        if name.endswith(tuple(record.get("zero_filled_suffixes", ()))):
            value = np.zeros_like(value)
        out[name] = torch.from_numpy(value).requires_grad_(name in leaves)
    return out | {name: out[first] for name, first in aliases.items()}


def compare(case: Case) -> Iterator[Deviation]:
    """Run our model on a recorded case; yields how far logits, stages and gradients are from it."""
    module = families()[case.family]
    record = case.record
    with_grads = "grads" in record
    dtype = getattr(module, "DTYPE", torch.float32)
    model = module.build(case).to(dtype)
    assert not model.training, "build(case) must return a model in evaluation mode"
    norms = _norms(record["grads"]) if with_grads else {}
    trained = {name for name, norm in norms.items() if norm is not None}
    source = fill_state_dict(case.keys, record, trained)
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in module.convert(source, model).items()}
    model.load_state_dict({k: v.detach() for k, v in weights.items()}, strict=True)
    inputs = [x.to(dtype).requires_grad_(with_grads) for x in case.inputs]
    x = inputs if "input_maps" in record else inputs[0]
    with torch.set_grad_enabled(with_grads):
        outputs = _call_with(model, weights, lambda m: module.outputs(m, x, case))

    loose = getattr(module, "FULL_SIZE_TOLERANCE" if case.full_size else "TOLERANCE", None)
    if "logits" in record:
        expected = np.array(record["logits"]).reshape(record["logits_shape"])
        yield compare_operator("logits", outputs["logits"], expected, loose or tolerances.LOGITS)
    for stage in record.get("stages", ()):
        yield compare_summary(stage["name"], outputs[stage["name"]], stage, loose or tolerances.STAGES)
    recorded = [*record.get("outputs", ()), *filter(None, [record.get("output_before_sigmoid")])]
    for output in recorded:
        yield compare_summary(output["name"], outputs[output["name"]], output, loose or tolerances.LOGITS)
    if with_grads:
        values = [outputs[output["name"]] for output in recorded] or [outputs["logits"]]
        loss = sum((y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum() for y in values)
        if isinstance(recorded_loss := record.get("loss"), float):  # others say how it is made
            parts = (y.detach().abs() * torch.from_numpy(reference_input(tuple(y.shape), seed=7)).abs() for y in values)
            size = sum(float(part.sum()) for part in parts)
            yield Deviation(
                "loss", abs(float(loss.detach()) - recorded_loss), (loose or tolerances.LOGITS) * max(1.0, size)
            )
        aliases = record.get("aliases", {})
        leaves = {k: v for k, v in source.items() if v.requires_grad and k not in aliases}
        grads = torch.autograd.grad(loss, [*inputs, *leaves.values()], allow_unused=True)
        floor = getattr(module, "GRADIENT_FLOOR", tolerances.GRADIENT_FLOOR)
        by_name = dict(zip(leaves, grads[len(inputs) :], strict=True))
        yield from _compare_gradients(grads[: len(inputs)], by_name, record["grads"], floor)


def defect(case: Case) -> str:
    """What is wrong in a record because of a defect of the original; "" for most."""
    said = getattr(families()[case.family], "defect", None)
    return said(case) if said else ""


def not_compared(case: Case) -> list[str]:
    """Names of what a record holds that `compare` does not know."""
    return sorted(set(case.record) - _COMPARED - _DESCRIBING)


class _Probe(nn.Module):
    def __init__(self, model: nn.Module, function):
        super().__init__()
        self.model = model
        self.function = function

    def forward(self):
        return self.function(self.model)


def _call_with(model: nn.Module, weights: dict[str, Tensor], function):
    """`function(model)` with the model's parameters replaced by `weights`, part of the autograd graph."""
    return torch.func.functional_call(_Probe(model, function), {f"model.{k}": v for k, v in weights.items()}, ())


def compare_operator(what: str, ours: Tensor, expected, tolerance: float = tolerances.OPERATORS) -> Deviation:
    """Compare a whole tensor; the tolerance is relative to the spread of the recorded values if that is above 1."""
    expected = np.asarray(expected, dtype=np.float64)
    ours = ours.detach().cpu().double().numpy()
    if ours.shape != expected.shape:
        raise AssertionError(f"{what}: shape {ours.shape}, recorded {expected.shape}")
    return Deviation(what, float(np.abs(ours - expected).max()), tolerance * max(1.0, float(expected.std())))


def compare_summary(what: str, ours: Tensor, recorded: dict, tolerance: float = tolerances.STAGES) -> Deviation:
    """Compare a tensor with the recorded sample of its values, their mean and standard deviation."""
    ours = ours.detach().cpu().double().numpy()
    if list(ours.shape) != recorded["shape"]:
        raise AssertionError(f"{what}: shape {list(ours.shape)}, recorded {recorded['shape']}")
    differences = np.abs(sample(ours, len(recorded["sample"])) - np.array(recorded["sample"]))
    moments = (ours.mean() - recorded["mean"], ours.std() - recorded["std"])
    worst = np.max(np.abs([*differences, *moments]))  # NaN if one of them is
    return Deviation(what, float(worst), tolerance * max(1.0, recorded["std"]))


def compare_part(
    what: str,
    record: dict,
    module: nn.Module,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    channels_first: bool = False,
) -> Iterator[Deviation]:
    """Compare a part of a model of maps with its recorded outputs and gradients.

    Args:
        what: Name of the part.
        record: Its names and shapes ("keys"), input, output, gradients.
        module: Ours, for maps (b, h, w, c).
        convert: From the recorded names to those of `module`, differentiable.
        channels_first: The recorded maps are (b, c, h, w).
    """
    source = fill_state_dict(record["keys"], leaves=record["grads"]["params"])
    given, recorded = record["inputs"]["x"], record["outputs"]["y"]
    x = torch.from_numpy(reference_input(given["shape"], given["seed"])).requires_grad_()
    maps = (x.permute(0, 2, 3, 1) if channels_first else x,)
    y = torch.func.functional_call(module.eval(), convert(source), maps, strict=True)
    y = y.permute(0, 3, 1, 2) if channels_first else y
    yield compare_operator(what, y, np.array(recorded["data"]).reshape(recorded["shape"]))
    leaves = {k: v for k, v in source.items() if v.requires_grad}
    loss = (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
    grads = torch.autograd.grad(loss, [x, *leaves.values()])
    expected = np.array(record["grads"]["inputs"]["x"]["data"])
    largest = float(np.abs(expected).max())
    difference = float(np.abs(grads[0].numpy().reshape(-1) - expected).max())
    yield Deviation(f"{what}, gradient of the input", difference, tolerances.GRADIENTS * largest)
    norms = record["grads"]["params"]
    floor = tolerances.GRADIENT_FLOOR * max(norms.values())
    for name, grad in zip(leaves, grads[1:], strict=True):
        allowed = max(tolerances.GRADIENTS * norms[name], floor)
        yield Deviation(f"{what}, gradient norm of {name}", abs(float(grad.norm()) - norms[name]), allowed)


def is_dense(case: Case) -> bool:
    """Whether a case is of the original's backbone for dense prediction: a norm for each stage, no final one."""
    return any(name.startswith("outnorm") for name, _ in case.record.get("keys", ()))


def dense_weights(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights of such a backbone without its norms, and with a final one that does nothing."""
    out = {name: value for name, value in state_dict.items() if not name.startswith("outnorm")}
    out["classifier.norm.weight"] = torch.ones(model.num_features)
    out["classifier.norm.bias"] = torch.zeros(model.num_features)
    return out


def dense_outputs(stages: list[Tensor]) -> dict[str, Tensor]:
    """What such a backbone makes of the outputs of the stages (b, c, h, w)."""
    out = {}
    for i, x in enumerate(stages):
        shape = (x.shape[1],)
        weight, bias = (torch.from_numpy(fill(f"outnorm{i}.{kind}", shape)) for kind in ("weight", "bias"))
        out[f"out{i}"] = F.layer_norm(x.permute(0, 2, 3, 1), shape, weight, bias, 1e-5).permute(0, 3, 1, 2)
    return out


def _norms(grads: dict) -> dict[str, float | None]:
    return grads["param_l2"] if "param_l2" in grads else grads["params_l2"]


def _compare_gradients(
    grad_inputs: Sequence[Tensor], grads: dict[str, Tensor | None], recorded: dict, relative_floor: float
) -> Iterator[Deviation]:
    for grad_input, entry in zip(grad_inputs, recorded.get("input_maps") or [recorded["input"]], strict=True):
        what, expected = f"gradient of {entry.get('name', 'the input')}", np.array(entry["sample"])
        ours = grad_input.double().numpy()
        if list(ours.shape) != entry.get("shape", list(ours.shape)):
            raise AssertionError(f"{what}: shape {list(ours.shape)}, recorded {entry['shape']}")
        moments = [ours.mean() - entry["mean"], ours.std() - entry["std"]] if "mean" in entry else []
        differences = [*(sample(ours, expected.size) - expected), *moments]
        largest = tolerances.GRADIENTS * float(np.abs(expected).max())
        yield Deviation(what, float(np.max(np.abs(differences))), largest)
        if "l2" in entry:
            norm = float(np.linalg.norm(ours))
            yield Deviation(f"norm of the {what}", abs(norm - entry["l2"]), tolerances.GRADIENTS * entry["l2"])
    norms = {name: norm for name, norm in _norms(recorded).items() if norm is not None}  # None: not trained
    floor = relative_floor * max(norms.values())
    worst = Deviation("gradient norms", 0.0, 1.0)
    for name, norm in norms.items():
        grad = grads.get(name)
        ours = 0.0 if grad is None else float(grad.double().norm())
        deviation = Deviation(f"gradient norm of {name}", abs(ours - norm), max(tolerances.GRADIENTS * norm, floor))
        # NaN compares as the worst
        if not deviation.measured / deviation.allowed <= worst.measured / worst.allowed:
            worst = deviation
    yield worst
