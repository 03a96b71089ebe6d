"""Detection and segmentation of image files by the command."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmseg.models", reason="mmseg or mmcv is not installed")

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from PIL import Image  # noqa: E402

from visionssm.commands.openmmlab_predict import main  # noqa: E402
from visionssm.errors import UserError  # noqa: E402
from visionssm.models import CheckpointError  # noqa: E402
from visionssm.openmmlab.prediction import Predictor, objects, shares  # noqa: E402

TOOL = Path(__file__).resolve().parents[2] / "tools" / "openmmlab_predict.py"
DETECTOR = TOOL.parents[1] / "configs/detection/digits/mask_rcnn_test_vmamba_digits.py"
SEGMENTER = """
custom_imports = dict(imports=["visionssm.openmmlab"], allow_failed_imports=False)
default_scope = "mmseg"
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", size_divisor=32, test_cfg=dict(size_divisor=32)),
    backbone=dict(type="VisionSSMBackbone", name="test_vmamba", pretrained="not-read.pth"),
    decode_head=dict(type="FCNHead", in_channels=64, in_index=3, channels=64, num_convs=0, concat_input=False,
                     num_classes=3),
    test_cfg=dict(mode="whole"))
test_dataloader = dict(dataset=dict(
    type="BaseSegDataset", data_root="no-such-folder", metainfo=dict(classes=("ground", "cat", "dog")),
    data_prefix=dict(img_path="images", seg_map_path="annotations"),
    pipeline=[dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]))
"""


def build(config):
    cfg = Config.fromfile(config)
    cfg.model.backbone.pretrained = False
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@pytest.fixture
def files(tmp_path):
    """A configuration, a checkpoint whose head answers "dog" everywhere, an image of odd size."""
    config = tmp_path / "config.py"
    config.write_text(SEGMENTER)
    model = build(config)
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    model.decode_head.conv_seg.bias.data = torch.tensor([0.0, 1.0, 2.0])
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "last.pth")
    Image.new("RGB", (61, 47), "red").save(tmp_path / "image.png")
    return tmp_path


def run(files, config, checkpoint="last.pth", image="image.png"):
    return main(
        [
            str(files / image),
            "--config",
            str(config),
            "--checkpoint",
            str(files / checkpoint),
            "--output",
            str(files / "out"),
        ]
    )


def drawn(files):
    with Image.open(files / "out" / "0000_image.png") as picture:
        return picture.convert("RGB")


def test_segmentation_gives_a_picture_and_a_line(files, capsys):
    sample = Predictor(str(files / "config.py"), str(files / "last.pth"))(files / "image.png")
    labels = sample.pred_sem_seg.data[0]
    assert labels.shape == (47, 61) and (labels == 2).all()
    assert run(files, files / "config.py") == 0
    assert "dog 100.0 %" in capsys.readouterr().out
    assert drawn(files).size == (61, 47)
    assert drawn(files).getpixel((0, 0)) != (255, 0, 0), "the class is drawn over the image"


def test_detection_gives_a_picture_and_a_line(files, capsys):
    pytest.importorskip("mmdet", reason="mmdet is not installed")
    torch.manual_seed(0)
    model = build(DETECTOR)
    # a head that takes every proposal for a "7", and whose masks fill their boxes
    model.roi_head.bbox_head.fc_cls.bias.data[7] = 20.0
    torch.nn.init.constant_(model.roi_head.mask_head.conv_logits.bias, 20.0)
    torch.save({"state_dict": model.state_dict()}, files / "last.pth")
    found = Predictor(str(DETECTOR), str(files / "last.pth"))(files / "image.png").pred_instances
    assert len(found) and (found.labels == 7).all() and found.masks.shape[1:] == (47, 61) and found.masks.any()
    assert run(files, DETECTOR) == 0
    assert "7 (1.00)" in capsys.readouterr().out
    assert drawn(files).size == (8 * 61, 8 * 47), "small images are drawn larger"
    assert len(drawn(files).getcolors(10000)) > 1, "boxes and masks are drawn over the image"


def test_lines_are_ranked():
    assert shares(torch.tensor([[1, 1, 0, 1]]), ("a", "b")) == "b 75.0 %, a 25.0 %"
    labels, scores = torch.tensor([0, 1, 1]), torch.tensor([0.5, 0.9, 0.1])
    assert objects(labels, scores, ("a", "b"), 0.3) == "b (0.90), a (0.50)"
    assert objects(labels, scores, ("a", "b"), 0.95) == "nothing with a score of 0.95 or more"
    assert objects(torch.zeros(12), torch.ones(12), {0: "a"}, 0.3).endswith("a (1.00), 2 more")


def test_bad_input_is_one_sentence(files, capsys):
    config = files / "config.py"
    assert run(files, config, image="absent.png") == 2
    assert "absent.png does not exist" in capsys.readouterr().err
    (files / "broken.png").write_bytes(b"no image")
    assert run(files, config, image="broken.png") == 2
    assert "broken.png cannot be read" in capsys.readouterr().err
    assert run(files, config, checkpoint="broken.png") == 2
    assert "broken.png" in capsys.readouterr().err
    assert run(files, files / "absent.py") == 2
    assert "no configuration at" in capsys.readouterr().err
    torch.save({"state_dict": {"backbone.x": torch.zeros(1)}}, files / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit the config's model"):
        Predictor(str(config), str(files / "other.pth"))
    config.write_text(SEGMENTER.replace('"mmseg"', '"mmpose"'))
    with pytest.raises(UserError, match="configuration of 'mmpose'"):
        Predictor(str(config), str(files / "last.pth"))


def test_the_former_way_in_still_leads_here():
    command = [sys.executable, TOOL.with_name("predict.py"), "--config", "x", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and "mmseg" in result.stdout
    assert "is now the command openmmlab-predict" in result.stderr
