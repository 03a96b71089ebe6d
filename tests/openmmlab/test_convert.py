"""Authors' detectors and segmenters: files made in their layout, converted, compared with the recorded outputs."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine", reason="the OpenMMLab stack is not installed")

import torch  # noqa: E402

from tests.parity import DATA, compare_summary, fill_state_dict, reference_input  # noqa: E402
from tests.parity import plainmamba as plainmamba_parity  # noqa: E402
from tests.parity import vmamba as vmamba_parity  # noqa: E402
from visionssm.models._checkpoint import CheckpointError  # noqa: E402
from visionssm.openmmlab import VisionSSMBackbone  # noqa: E402
from visionssm.openmmlab.convert import convert_checkpoint  # noqa: E402

TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert.py"
VMAMBA, PLAINMAMBA = "goldens/vmamba_custom_v0-backbone", "ops/plainmamba-backbone"
HEAD = {"decode_head.conv_seg.weight": torch.arange(6.0).view(2, 3, 1, 1)}


def record_of(path):
    return json.loads((DATA / f"{path}.json").read_text())


def backbone_args(path):
    record = record_of(path)
    if path == VMAMBA:
        return dict(name="test_vmamba", model_args=vmamba_parity.model_args(record["config"]))
    return dict(
        name="test_plainmamba", model_args=plainmamba_parity.model_args(record["config"]),
        out_indices=record["out_indices"], out_norm=("layernorm", "model"), out_norm_eps=1e-6)


def authors_file(path):
    """A training checkpoint as mmengine writes it."""
    record = record_of(path)
    weights = {f"backbone.{k}": v for k, v in fill_state_dict(record["keys"], record).items()}
    return {"meta": {"epoch": 12}, "state_dict": weights | HEAD | {"ema_backbone_pos_embed": torch.zeros(1)}}


@pytest.mark.parametrize("path", [VMAMBA, PLAINMAMBA])
def test_converted_weights_give_the_recorded_maps(path):
    record = record_of(path)
    converted = convert_checkpoint(authors_file(path), VisionSSMBackbone(**backbone_args(path)))
    assert torch.equal(converted.pop("decode_head.conv_seg.weight"), HEAD["decode_head.conv_seg.weight"])
    assert all(name.startswith("backbone.") for name in converted)
    backbone = VisionSSMBackbone(**backbone_args(path)).eval()
    backbone.load_state_dict({k.removeprefix("backbone."): v for k, v in converted.items()}, strict=True)
    with torch.no_grad():
        maps = backbone(torch.from_numpy(reference_input(record["input_shape"], record["seed"])))
    for ours, expected in zip(maps, record.get("outputs") or record["stages"], strict=True):
        assert compare_summary(expected["name"], ours, expected).ok


def test_what_does_not_fit_is_refused():
    backbone = VisionSSMBackbone(**backbone_args(VMAMBA))
    file = authors_file(VMAMBA)
    with pytest.raises(CheckpointError, match="no name begins with 'backbone.'"):
        convert_checkpoint({"state_dict": HEAD}, backbone)
    with pytest.raises(CheckpointError, match="PlainMamba file"):
        convert_checkpoint(authors_file(PLAINMAMBA), VisionSSMBackbone("test_vmamba"))
    with pytest.raises(CheckpointError, match="returns level 0"):
        convert_checkpoint(file, VisionSSMBackbone(**backbone_args(VMAMBA), out_indices=(1, 2, 3)))
    with pytest.raises(CheckpointError, match=r"unexpected \(8\): out_norms.0"):
        convert_checkpoint(file, VisionSSMBackbone(**backbone_args(VMAMBA), out_norm=None))
    adapter = dict(HEAD, **{"backbone.spm.fc1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="adapter"):
        convert_checkpoint(adapter, backbone)
    del file["state_dict"]["backbone.outnorm3.bias"]
    with pytest.raises(CheckpointError, match=r"missing \(1\): out_norms.3.bias"):
        convert_checkpoint(file, backbone)


def test_tool_on_a_segmenter(tmp_path):
    pytest.importorskip("mmseg.models", reason="mmseg or mmcv is not installed")
    config = tmp_path / "config.py"
    args = dict(backbone_args(VMAMBA), type="VisionSSMBackbone", pretrained="authors-classifier.pth")
    channels = list(VisionSSMBackbone(**backbone_args(VMAMBA)).out_channels)
    config.write_text(
        "default_scope = 'mmseg'\n"
        "model = dict(type='EncoderDecoder',\n"
        f"    backbone={args!r},\n"
        f"    decode_head=dict(type='FCNHead', in_channels={channels[3]}, in_index=3, channels={channels[3]},\n"
        "                     num_convs=0, concat_input=False, num_classes=2))\n")
    file = authors_file(VMAMBA)
    file["state_dict"] |= {
        "decode_head.conv_seg.weight": torch.ones(2, channels[3], 1, 1), "decode_head.conv_seg.bias": torch.ones(2)}
    torch.save(file, tmp_path / "authors.pth")

    def run():
        return subprocess.run([sys.executable, TOOL, config, tmp_path / "authors.pth", tmp_path / "ours.pth"],
                              capture_output=True, text=True, check=False)

    result = run()
    assert result.returncode == 0, result.stderr
    assert "necks and heads fit" in result.stdout
    ours = torch.load(tmp_path / "ours.pth", weights_only=True)["state_dict"]
    assert "backbone.out_norms.0.weight" in ours and torch.equal(ours["decode_head.conv_seg.bias"], torch.ones(2))

    (tmp_path / "ours.pth").unlink()
    del file["state_dict"]["decode_head.conv_seg.bias"]
    torch.save(file, tmp_path / "authors.pth")
    result = run()
    assert result.returncode == 2 and "decode_head.conv_seg.bias" in result.stderr
    assert not (tmp_path / "ours.pth").exists()
