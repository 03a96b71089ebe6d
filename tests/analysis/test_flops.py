"""Counted multiply-adds against the published figures."""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg
from torch import nn

import visionssm
from visionssm.analysis.flops import count

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
    assert cost == (3 * 4 * 9 + 144 * 5 + 5, 36 * 3 * 4 * 9 + 144 * 5)


def test_meta_and_cpu_agree_and_leave_the_mode():
    model = timm.create_model("test_vmamba").train()
    on_meta = count(timm.create_model("test_vmamba", device="meta"), (3, 64, 64), batch=2)
    assert count(model, (3, 64, 64), batch=2) == on_meta
    assert model.training
    assert not torch.is_inference_mode_enabled()
