"""Segmentation of image files by the command."""
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmseg.models", reason="mmseg or mmcv is not installed")

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from PIL import Image  # noqa: E402

from visionssm.engine.errors import UserError  # noqa: E402
from visionssm.openmmlab.prediction import load_segmenter, main, segment, shares  # noqa: E402

TOOL = Path(__file__).resolve().parents[2] / "tools" / "predict.py"
CONFIG = """
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


@pytest.fixture
def files(tmp_path):
    """A configuration, a checkpoint whose head answers "dog" everywhere, an image of odd size."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    init_default_scope("mmseg")
    cfg = Config.fromfile(config)
    cfg.model.backbone.pretrained = False
    model = MODELS.build(cfg.model)
    torch.nn.init.zeros_(model.decode_head.conv_seg.weight)
    model.decode_head.conv_seg.bias.data = torch.tensor([0.0, 1.0, 2.0])
    torch.save({"state_dict": model.state_dict(), "meta": {}}, tmp_path / "last.pth")
    Image.new("RGB", (61, 47), "red").save(tmp_path / "image.png")
    return tmp_path


def test_a_picture_and_a_line_for_each_image(files, capsys):
    labels = segment(load_segmenter(str(files / "config.py"), str(files / "last.pth")), files / "image.png")
    assert labels.shape == (47, 61) and (labels == 2).all()
    assert main([str(files / "image.png"), "--config", str(files / "config.py"), "--checkpoint",
                 str(files / "last.pth"), "--output", str(files / "out")]) == 0
    assert "dog 100.0 %" in capsys.readouterr().out
    with Image.open(files / "out" / "0000_image.png") as picture:
        assert picture.size == (61, 47)
        assert picture.convert("RGB").getpixel((0, 0)) != (255, 0, 0), "the class is drawn over the image"


def test_shares_are_ranked():
    assert shares(torch.tensor([[1, 1, 0, 1]]), ("a", "b")) == "b 75.0 %, a 25.0 %"


def test_bad_input_is_one_sentence(files, capsys):
    arguments = ["--config", str(files / "config.py"), "--checkpoint", str(files / "last.pth"), "--output", str(files)]
    assert main([str(files / "absent.png"), *arguments]) == 2
    assert "absent.png does not exist" in capsys.readouterr().err
    (files / "broken.png").write_bytes(b"no image")
    assert main([str(files / "broken.png"), *arguments]) == 2
    assert "broken.png cannot be read" in capsys.readouterr().err
    torch.save({"state_dict": {"backbone.x": torch.zeros(1)}}, files / "other.pth")
    with pytest.raises(UserError, match="does not hold the weights"):
        load_segmenter(str(files / "config.py"), str(files / "other.pth"))
    (files / "config.py").write_text(CONFIG.replace('"mmseg"', '"mmdet"'))
    with pytest.raises(UserError, match="configuration of 'mmdet'"):
        load_segmenter(str(files / "config.py"), str(files / "last.pth"))


def test_the_tool_chooses_by_config():
    for arguments, words in ((["--config", "x", "--help"], "mmseg"), (["--help"], "Classify")):
        result = subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False)
        assert result.returncode == 0 and words in result.stdout
