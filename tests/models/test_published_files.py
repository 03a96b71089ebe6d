"""What every family owes to its published files: the recorded names and shapes of all variants, against all models."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import timm
import torch

import visionssm  # noqa: F401
from tests.families import SMALL
from visionssm.checkpoints import CheckpointError, identify

DATA = Path(__file__).resolve().parent.parent / "data"
RECORDED = {ours: theirs for theirs, ours in json.loads((DATA / "names.json").read_text()).items()}
# one variant of each kind whose names are recorded
KINDS = [name for name in SMALL if name in RECORDED]
NESTINGS = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3},
    "state_dict": lambda s: {"state_dict": s, "meta": {"epoch": 3}},
    "module": lambda s: {"module": s, "epoch": 3},
    "module.": lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    "profiled": lambda s: {
        "model": s | {f"{p}total_{k}": torch.zeros(1) for p in ("", "x.") for k in ("ops", "params")}
    },
    "averaged": lambda s: {"model": {k: torch.zeros_like(v) for k, v in s.items()}, "model_ema": s},
}


def authors_weights(name):
    keys = json.loads((DATA / "keys" / f"{RECORDED[name]}.json").read_text())["keys"]
    return {k: torch.empty(shape, device="meta") for k, shape in keys}


@cache
def make(name):
    return timm.create_model(name, device="meta")


def shapes(state):
    return {k: tuple(v.shape) for k, v in state.items()}


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_names_and_shapes(name):
    model = make(name)
    assert shapes(model.checkpoint_filter_fn(authors_weights(name), model)) == shapes(model.state_dict())


@pytest.mark.parametrize("name", KINDS)
def test_nestings(name):
    model = make(name)
    expected = shapes(model.state_dict())
    for nest in NESTINGS.values():
        assert shapes(model.checkpoint_filter_fn(nest(authors_weights(name)), model)) == expected


@pytest.mark.parametrize("name", KINDS)
def test_files_of_other_families_are_named_for_what_they_are(name):
    model = make(name)
    for other in KINDS:
        if type(make(other)) is type(model):
            continue
        source = authors_weights(other)
        family = identify(source)
        assert family is not None, f"no family knows the names of {other}"
        with pytest.raises(CheckpointError) as error:
            model.checkpoint_filter_fn(source, model)
        assert family in str(error.value), f"{name} given {other}: {error.value}"


@pytest.mark.parametrize("name", [name for name in KINDS if make(name).layout.tell_tale])
def test_a_file_is_known_as_its_own_family(name):
    assert identify(authors_weights(name)) == type(make(name)).__name__


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_entry_is_refused(name):
    model = make(name)
    source = authors_weights(name)
    del source[next(k for k in source if re.search(r"(norm|bn\d?)\.weight$", k))]
    with pytest.raises(CheckpointError, match="missing from the file"):
        model.checkpoint_filter_fn(source, model)
