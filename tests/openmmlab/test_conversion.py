"""Authors' detectors and segmenters: files made in their layout load and reproduce their recorded maps."""
import json

import pytest

pytest.importorskip("mmengine", reason="the OpenMMLab stack is not installed")

import torch  # noqa: E402
from torch import nn  # noqa: E402

from tests.parity import DATA, compare_summary, fill_state_dict, reference_input  # noqa: E402
from tests.parity import localmamba as localmamba_parity  # noqa: E402
from tests.parity import plainmamba as plainmamba_parity  # noqa: E402
from tests.parity import vmamba as vmamba_parity  # noqa: E402
from visionssm.models._checkpoint import CheckpointError  # noqa: E402
from visionssm.openmmlab import VisionSSMBackbone  # noqa: E402
from visionssm.openmmlab.conversion import convert  # noqa: E402
from visionssm.openmmlab.weights import read_state_dict  # noqa: E402


class Segmenter(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Conv2d(backbone.out_channels[-1], 3, 1)


def _vmamba(record):
    return dict(name="test_vmamba", model_args=vmamba_parity.model_args(record["config"]))


def _localvmamba(record):
    return dict(name="test_localvmamba", model_args=localmamba_parity.localvmamba_args(record["config"]))


def _localvim(record):
    args = dict(localmamba_parity.localvim_args(record["config"]), d_state=16)
    return dict(name="test_localvim", model_args=args, feature_stream=False)


def _plainmamba(record):
    return dict(name="test_plainmamba", model_args=plainmamba_parity.model_args(record["config"]),
                out_norm=("layernorm", "model"), out_norm_eps=1e-6)


CASES = [
    ("goldens/vmamba_custom_ln2d_r2-backbone", _vmamba),
    ("goldens/vmamba_custom_v0-backbone", _vmamba),
    ("ops/localmamba-backbone-local_vssm", _localvmamba),
    ("ops/localmamba-backbone-local_vim", _localvim),
    ("ops/plainmamba-backbone", _plainmamba),
]


def _case(path, arguments):
    """The record, our model, and a state dict in the authors' layout."""
    record = json.loads((DATA / f"{path}.json").read_text())
    outputs = record.get("outputs") or record["stages"]
    backbone = VisionSSMBackbone(**arguments(record), out_indices=record.get("out_indices", range(len(outputs))))
    model = Segmenter(backbone).eval()
    theirs = {f"backbone.{k}": v for k, v in fill_state_dict(record["keys"], record).items()}
    theirs |= {f"decode_head.{k}": v.clone() + 1 for k, v in model.decode_head.state_dict().items()}
    return record, outputs, model, theirs


@pytest.mark.parametrize("path, arguments", CASES)
def test_converted_weights_reproduce_the_recorded_maps(path, arguments, tmp_path):
    record, outputs, model, theirs = _case(path, arguments)
    torch.save({"meta": {"epoch": 12}, "state_dict": theirs, "optimizer": {}}, tmp_path / "epoch_12.pth")
    model.load_state_dict(convert(read_state_dict(tmp_path / "epoch_12.pth"), model), strict=True)
    assert torch.equal(model.decode_head.weight, theirs["decode_head.weight"])
    with torch.no_grad():
        maps = model.backbone(torch.from_numpy(reference_input(record["input_shape"], record["seed"])))
    for ours, expected in zip(maps, outputs, strict=True):
        assert compare_summary(expected["name"], ours, expected).ok


def test_what_does_not_fit_is_refused():
    _, _, model, theirs = _case(*CASES[0])
    with pytest.raises(CheckpointError, match="unexpected .*neck.weight"):
        convert(theirs | {"neck.weight": torch.zeros(1)}, model)
    with pytest.raises(CheckpointError, match="missing .*out_norms.3.weight"):
        convert({k: v for k, v in theirs.items() if "outnorm3" not in k}, model)
    with pytest.raises(CheckpointError, match="decode_head.weight"):
        convert(theirs | {"decode_head.weight": torch.zeros(1)}, model)
    with pytest.raises(CheckpointError, match="none of its names begin with 'backbone.'"):
        convert({"layers.0.weight": torch.zeros(1)}, model)
    with pytest.raises(CheckpointError, match="ViT-Adapter"):
        convert(theirs | {"backbone.spm.stem.0.weight": torch.zeros(1)}, model)
    with pytest.raises(CheckpointError, match="not one of"):
        convert(theirs | {"backbone.layers.9.weight": torch.zeros(1)}, model)
