"""What several processes take and send, against counts by hand."""

import json

import pytest
import timm
import torch

from visionssm.analysis.memory import TrainingMemory
from visionssm.analysis.scaling import Weights, hours, weights_of
from visionssm.commands import memory as memory_command
from visionssm.engine.training.sharding import units


def test_formulas():
    weights = Weights(total=1000, root=100, largest_unit=50, buffers=8)
    memory = TrainingMemory(state=5008, shared=20, per_image=7)
    assert weights.ddp_memory(memory, 3) == 5008 + 20 + 21 + 1000
    assert weights.fsdp_memory(memory, 3, 4) == 1250 + 200 + 200 + 8 + 20 + 21
    assert weights.ddp_traffic(1) == weights.fsdp_traffic(1) == 0
    assert weights.ddp_traffic(4) == 1500 and weights.fsdp_traffic(4) == 2175
    assert hours(3600, 10, 5.0, 2) == 1.0


@pytest.mark.parametrize("name", ["test_vmamba", "test_vim"])
def test_every_weight_is_of_one_unit_or_of_the_root(name):
    model = timm.create_model(name)
    names = units(model)
    owners = [[unit for unit in names if key.startswith(f"{unit}.")] for key, _ in model.named_parameters()]
    assert len(names) > 2 and all(len(found) < 2 for found in owners)
    left = sum(p.numel() for (_, p), found in zip(model.named_parameters(), owners, strict=True) if not found)
    weights = weights_of(model, names)
    assert (weights.total, weights.root) == (4 * sum(p.numel() for p in model.parameters()), 4 * left)
    assert 0 < weights.largest_unit < weights.total


def test_command(tmp_path, capsys):
    pytest.importorskip("triton")
    argv = ["--model", "test_vmamba", "--img-size", "32", "-b", "8", "--processes", "2", "8", "--throughput", "1000"]
    assert memory_command.main([*argv, "--output", str(tmp_path / "rows.json")]) == 0
    plain, saving = json.loads((tmp_path / "rows.json").read_text())
    assert plain["ddp_sent_mib"]["2"] == plain["weights_mib"] and saving["fsdp_gib"].keys() == {"2", "8"}
    assert memory_command.main([*argv, "--price", "2", "--epochs", "90"]) == 0
    out = capsys.readouterr().out
    assert "| ImageNet-1K, 1,281,167 | 8 | 4.0 | 32 | 64 |" in out
    assert memory_command.main(["--model", "test_vmamba", "--price", "2"]) == 2
    assert torch.get_default_dtype() == torch.float32
