import pytest
import timm
import torch

import visionssm  # noqa: F401  registers the models
from visionssm.analysis.exporting import export_model

PICO = [name for name in visionssm.list_models() if name.startswith("test_")]


# 10 to 20 seconds a model; that every model exports at all is a test over the registry
CASES = [
    pytest.param(name, ending, marks=[] if name == "test_vmamba" else pytest.mark.slow)
    for name in PICO
    for ending in ("pt2", "onnx")
]


@pytest.mark.parametrize(("name", "ending"), CASES)
def test_pico_variants_export(name, ending, tmp_path):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = timm.create_model(name)
    size = model.pretrained_cfg["input_size"]
    path = tmp_path / f"model.{ending}"
    assert export_model(model, torch.randn(2, *size), path) < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_unknown_ending_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'model.bin'; the ending must be one of .pt2, .onnx"):
        export_model(timm.create_model("test_vmamba"), torch.randn(2, 3, 32, 32), tmp_path / "model.bin")
