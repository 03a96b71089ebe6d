"""Counted multiply-adds against the published figures."""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

import visionssm
from visionssm.analysis.counting_rules import CountingRule, count_by
from visionssm.analysis.flops import count, count_modules
from visionssm.commands.flops import main, published

FIGURES = published()
CARDS = Path(__file__).resolve().parents[2] / "model_cards"
VMAMBA = json.loads((CARDS / "vmamba.json").read_text())["variants"]


@pytest.mark.parametrize("name", VMAMBA)
def test_vmamba_within_two_percent_of_the_published(name):
    cost = count(timm.create_model(name, device="meta"), get_pretrained_cfg(name).input_size)
    assert cost.multiply_adds / 1e9 == pytest.approx(VMAMBA[name]["gmacs"], rel=0.02)


def test_figures_are_of_registered_models():
    for path in CARDS.glob("*.json"):
        assert set(json.loads(path.read_text())["variants"]) <= set(visionssm.list_models()), path.name


def test_one_multiply_add_is_one():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    cost = count(model, (3, 8, 8))
    assert cost == (3 * 4 * 9 + 144 * 5 + 5, 36 * 3 * 4 * 9 + 144 * 5, 36 * 4 + 5)


def test_meta_and_cpu_agree_and_leave_the_mode():
    model = timm.create_model("test_vmamba").train()
    on_meta = count(timm.create_model("test_vmamba", device="meta"), (3, 64, 64), batch=2)
    assert count(model, (3, 64, 64), batch=2) == on_meta
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_modules_add_up():
    model = timm.create_model("test_vmamba", device="meta")
    rows = {row.name: row for row in count_modules(model, (3, 64, 64))}
    parts = [row for name, row in rows.items() if name and "." not in name]
    for field in ("parameters", "multiply_adds", "activations"):
        assert sum(getattr(row, field) for row in parts) == getattr(rows[""], field) > 0, field
    block, whole = rows["stages.0.blocks.0"], count(model, (3, 64, 64))
    assert 0 < block.activations < whole.activations and block.type == "ResidualBlock"


# one of each card whose rule gives its figures
RULED = ["vim_tiny", "vim_small", "localvim_tiny", "efficientvmamba_tiny", "vssd_micro", "mambavision_t2"]


@pytest.mark.parametrize("name", RULED)
def test_the_papers_rule_gives_the_papers_figure(name):
    known = FIGURES[name]
    model, size = timm.create_model(name, device="meta"), get_pretrained_cfg(name).input_size
    ours, theirs = count(model, size).multiply_adds, count_by(CountingRule(**known["counting"]["rule"]), model, size)
    assert count_by(CountingRule(), model, size) == ours
    assert abs(theirs / 1e9 / known["gmacs"] - 1) < 0.015 < abs(ours / 1e9 / known["gmacs"] - 1)


def test_rules_count_by_hand():
    """A block of Vim with everything else taken away: its scans, and their projections once."""
    model = timm.create_model("test_vim", device="meta")
    size, blocks, tokens = (3, 64, 64), len(model.blocks), 17
    ssm = next(m for m in model.modules() if hasattr(m, "x_proj_weight"))
    (routes, width, d), n, r = ssm.x_proj_weight.shape, ssm.A_log.shape[-1], ssm.dt_weight.shape[-1]
    whole = count_by(CountingRule(), model, size)
    free = count_by(CountingRule(scan_states=0, scan_channels=0, expand_step=False), model, size)
    assert whole - free == blocks * tokens * routes * d * (9 * n + 1 + r)
    once = count_by(CountingRule(scan_states=0, scan_channels=0, expand_step=False, one_route=True), model, size)
    assert free - once == blocks * tokens * (routes - 1) * width * d


def test_the_command_counts_any_model_in_every_form(tmp_path, capsys):
    assert main(["--model", "test_vim", "resnet18", "--img-size", "64", "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "model,input,parameters,gmacs,activations"
    assert [line.split(",")[0] for line in lines[1:]] == ["test_vim", "resnet18"]
    path = tmp_path / "vim.json"
    assert main(["--model", "vim_tiny", "--format", "json", "--output", str(path)]) == 0
    (row,) = json.loads(path.read_text())
    assert row["gap"] > 0.2 and abs(row["their_rule_gap"]) < 0.015 and "LocalMamba" in row["why"]
    capsys.readouterr()
    assert main(["--model", "test_vim", "--modules", "1", "--format", "markdown"]) == 0
    assert "| head" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (["--model", "vmmaba_tiny*"], "no model matches"),
        (["--model", "test_vmi"], "did you mean"),
        (["--model", "test_vim", "--img-size", "1", "2", "3"], "a height and a width"),
        (["--model", "test_vmamba", "--img-size", "1", "1", "--model-kwargs", "depth=3"], "cannot be built"),
        (["--model", "test_vim", "--modules", "-1"], "at least 0"),
    ],
)
def test_bad_input_of_the_command_ends_in_a_sentence(told, sentence, capsys):
    assert main(told) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
