"""Every recipe file of the repository: known keys and models, the authors' numbers, one step per family."""

import csv
import json
import sys
from pathlib import Path

import pytest
import timm.task.distillation as distillation
import torch
import yaml
from timm.models import is_model
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from tests.families import FAMILIES, PICO, at_size, published, small_of
from visionssm.commands import _training as training
from visionssm.commands import train as train_command
from visionssm.commands._arguments import parse_args
from visionssm.commands._options import TrainOptions
from visionssm.digits.images import write_classification

ROOT = Path(__file__).parents[2] / "configs" / "classification"
CARDS = Path(__file__).parents[2] / "model_cards"
FILES = sorted(ROOT.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_values_and_model_are_known(path):
    args = parse_args(["-c", str(path)])
    assert is_model(args.model)
    assert args.train_interpolation != "random"
    if args.kd_model_name:
        assert is_model(args.kd_model_name.split(".")[0])


TIMM_OPTIONS = json.loads((Path(__file__).parent / "timm_options.json").read_text())
# timm's parser lets a recipe set this one too, and its data configuration reads it, though it has no flag for it
TIMM_OPTIONS["crop_mode"] = {"type": "str", "list": False}
KINDS = {"bool": bool, "int": int, "float": (int, float), "str": str, "mapping": dict}


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "finetune"], ids=lambda path: path.stem)
def test_timms_parser_knows_the_keys_and_their_types(path):
    """timm takes what YAML gives without converting it; the options are recorded by tools/timm_parity.py."""
    for key, value in yaml.safe_load(path.read_text()).items():
        option = TIMM_OPTIONS[key]
        assert isinstance(value, list) == option["list"], key
        for item in value if option["list"] else [value]:
            assert isinstance(item, KINDS[option["type"]]), key
            assert isinstance(item, bool) == (option["type"] == "bool"), key


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_variant_has_a_recipe(family):
    names = {parse_args(["-c", str(path)]).model for path in (ROOT / family).glob("*.yaml")}
    assert set(published(family)) <= names


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.json")), ids=lambda path: path.stem)
def test_recipes_of_a_family_differ_only_in_named_keys(path):
    """Recipes are whole files, so that timm can read them; a change to one must not miss its siblings."""
    recipes = [yaml.safe_load(file.read_text()) for file in sorted((ROOT / path.stem).glob("*.yaml"))]
    keys = {key for recipe in recipes for key in recipe}
    differing = {key for key in keys if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)}
    assert differing - {"model"} == set(json.loads(path.read_text()).get("recipes_differ_in", "").split())


@pytest.mark.parametrize(
    "file, processes, rate, epochs",
    [
        ("vmamba/vmamba_tiny_s1l8", 8, 1e-3, 300),
        ("groupmamba/groupmamba_small", 8, 1e-3, 300),
        ("grootv/grootv_base", 8, 1e-3, 300),
        ("mamba2d/mamba2d_nano", 8, 4e-3, 300),
        ("vim/vim_tiny", 8, 1e-3, 300),
        ("vim/vim_small", 8, 1e-3, 300),
        ("vim/vim_tiny_stride8", 8, 1e-5, 30),
        ("localmamba/localvim_tiny", 8, 1e-3, 300),
        ("plainmamba/plainmamba_l1", 8, 2e-3, 300),
        ("plainmamba/plainmamba_l3", 4, 1e-3, 300),
    ],
)
def test_learning_rate_and_length_are_the_papers(file, processes, rate, epochs):
    args = parse_args(["-c", str(ROOT / f"{file}.yaml")])
    found, sentence = training.learning_rate(TrainOptions.of(args), processes)
    assert found == pytest.approx(rate)
    assert f"{rate:.3e}" in sentence
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=found)
    assert create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=10)[1] == epochs


@pytest.mark.parametrize("model", PICO)
def test_one_step_of_each_kind(run, monkeypatch, model):
    """Through the recipe; only model, sizes, length and precision are small, and the teacher has no weights."""
    create = distillation.create_model
    monkeypatch.setattr(distillation, "create_model", lambda *a, **k: create(*a, **(k | {"pretrained": False})))
    path = min(
        ROOT.rglob(f"{small_of(model)}*.yaml"), key=lambda file: len(file.stem)
    )  # of several, that without suffix
    options = {
        "config": path,
        "model": model,
        "input_size": [3, 32, 32],
        "num_classes": 3,
        "batch_size": 12,
        "epochs": 1,
        "amp_dtype": "bfloat16",
        "opt": None,
        "lr": None,
        "img_size": None,
    }
    if parse_args(["-c", str(path)]).kd_model_name:
        options["kd_model_name"] = "test_resnet"
    options["model_kwargs"] = [f"{key}={value}" for key, value in at_size(model, 32).items()] or None
    assert run(**options) == 0
    assert (run.folder / "run" / "last.pth.tar").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "digits").glob("*.yaml")), ids=lambda path: path.stem)
def test_digits_recipes_reach_98_percent(path, tmp_path, capsys):
    """On the held-out digits after the last epoch, without choosing the best one."""
    write_classification(tmp_path / "digits")
    argv = ["-c", str(path), "--data-dir", str(tmp_path / "digits"), "--output", str(tmp_path / "run")]
    assert train_command.main(argv) == 0
    last = list(csv.DictReader((tmp_path / "run" / "summary.csv").open()))[-1]
    with capsys.disabled():  # for the report
        told = f"{path.stem}: {float(last['eval_top1']):.2f} % after {int(last['epoch']) + 1} epochs"
        print(told, file=sys.stderr)  # a worker's stdout is not shown
    assert float(last["eval_top1"]) > 98
