"""Multi-task decoders: over a backbone of ours, the authors' files completely, wrong input in a sentence."""

import json
from pathlib import Path

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.errors import CheckpointError
from visionssm.multitask import MTMambaDecoder

KEYS = Path(__file__).resolve().parents[1] / "data" / "keys"


@pytest.mark.parametrize("variant", sorted(path.stem for path in KEYS.glob("mtmamba_*.json")))
def test_published_files_fit_exactly(variant):
    record = json.loads((KEYS / f"{variant}.json").read_text())
    config = record["config"]
    with torch.device("meta"):
        model = MTMambaDecoder(config["channels"], config["tasks"], 2 if "plus" in config["kind"] else 1)
    assert sum(p.numel() for p in model.parameters()) == record["params"]
    state = {n: torch.empty(shape, device="meta") for n, shape in record["keys"]}
    nested = {"model": {f"module.{n}": v for n, v in state.items()} | {"module.backbone.norm3.weight": torch.ones(1)}}
    assert model.checkpoint_filter_fn(nested, model).keys() == model.state_dict().keys()
    with pytest.raises(CheckpointError, match="missing from the file"):
        model.checkpoint_filter_fn(dict(list(state.items())[:-1]), model)


@pytest.mark.parametrize("version", [1, 2])
def test_decodes_the_maps_of_a_backbone(version):
    backbone = timm.create_model("test_vmamba", features_only=True, dims=(8, 16, 32, 64), depths=(1, 1, 1, 1))
    tasks = {"edge": 1, "semseg": 4}
    decoder = MTMambaDecoder(backbone.feature_info.channels(), tasks, version)
    x = torch.randn(2, 3, 64, 96)
    y = decoder(backbone(x))
    assert {task: tuple(value.shape) for task, value in y.items()} == {
        "semseg": (2, 4, 64, 96),
        "edge": (2, 1, 64, 96),
    }
    assert list(y) == ["semseg", "edge"]
    sum(value.square().mean() for value in y.values()).backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="each twice the one before"):
        MTMambaDecoder((8, 16, 24), {"depth": 1})
    with pytest.raises(ValueError, match="version must be 1"):
        MTMambaDecoder((8, 16), {"depth": 1}, version=3)
    with pytest.raises(ValueError, match="tasks must name"):
        MTMambaDecoder((8, 16), {})
    decoder = MTMambaDecoder((8, 16), {"depth": 1})
    with pytest.raises(ValueError, match="maps of"):
        decoder([torch.randn(1, 8, 8, 8)])
    with pytest.raises(ValueError, match="must halve"):
        decoder([torch.randn(1, 8, 7, 8), torch.randn(1, 16, 3, 4)])
