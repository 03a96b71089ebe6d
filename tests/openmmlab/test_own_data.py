"""The steps of docs/openmmlab.md from data of one's own to pictures, as they are written there."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed")
pytest.importorskip("mmcv", reason="mmcv is not installed")

import numpy as np  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import DATASETS, init_default_scope  # noqa: E402
from PIL import Image  # noqa: E402
from torch import nn  # noqa: E402

from visionssm.commands import openmmlab_predict as predict  # noqa: E402
from visionssm.commands import openmmlab_test as evaluate  # noqa: E402
from visionssm.commands import openmmlab_train as train  # noqa: E402
from visionssm.openmmlab import ConfigError  # noqa: E402
from visionssm.openmmlab.data import check_classes  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# the model and images that a test can afford, in place of VMamba-T and 1333 x 800 pixels
SMALL = [
    "model.backbone.name=test_vmamba",
    "model.backbone.pretrained=False",
    "model.neck.in_channels=[20,32,48,64]",
    "model.train_cfg.rcnn.sampler.num=16",
    "model.train_cfg.rpn_proposal.max_per_img=16",
    "model.test_cfg.rpn.max_per_img=16",
    "model.test_cfg.rcnn.score_thr=0.0",
    "train_cfg.max_epochs=1",
    "train_dataloader.dataset.pipeline.2.scale=(96,64)",
    "val_dataloader.dataset.pipeline.1.scale=(96,64)",
    "test_dataloader.dataset.pipeline.1.scale=(96,64)",
    *(
        f"{split}_dataloader.{key}"
        for split in ("train", "val", "test")
        for key in ("num_workers=0", "persistent_workers=False")
    ),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with `mine.py` as documented, beside `configs`, and a tiny data set."""
    document = (ROOT / "docs/openmmlab.md").read_text()
    section = document[document.index("## From your own data set") :]
    config = re.search(r"```python\n(_base_.*?)```", section, re.DOTALL)[1]
    (tmp_path / "mine.py").write_text(config)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        folder = tmp_path / "data/mine" / split
        folder.mkdir(parents=True)
        images, annotations = [], []
        for number in range(2):
            pixels = rng.integers(0, 100, (61, 95, 3), dtype=np.uint8)
            for category, (left, top) in ((1, (8, 10)), (2, (50, 20))):
                pixels[top : top + 30, left : left + 35] = 255 if category == 1 else (255, 0, 0)
                corners = [left, top, left + 35, top, left + 35, top + 30, left, top + 30]
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=category,
                        bbox=[left, top, 35, 30],
                        area=1050,
                        segmentation=[corners],
                        iscrowd=0,
                    )
                )
            Image.fromarray(pixels).save(folder / f"{number}.png")
            images.append(dict(id=number, file_name=f"{number}.png", height=61, width=95))
        categories = [dict(id=1, name="cat"), dict(id=2, name="dog")]
        (folder.parent / f"{split}.json").write_text(
            json.dumps(dict(images=images, annotations=annotations, categories=categories))
        )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_four_steps_run_as_documented(project, capsys):
    common = ["--output", "work/mine", "--cfg-options", *SMALL]
    assert train.main(["--config", "mine.py", "--auto-scale-lr", *common, "experiment_name=own-train"]) == 0
    checkpoint = "work/mine/epoch_1.pth"
    capsys.readouterr()
    tested = ["--config", "mine.py", "--checkpoint", checkpoint, "--show-dir", "pictures"]
    assert evaluate.main([*tested, *common, "experiment_name=own-test"]) == 0
    assert "coco/bbox_mAP_50" in capsys.readouterr().out
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["0.png", "1.png"]

    # the command reads the config alone, which the training wrote down with all that was changed
    assert (
        predict.main(
            [
                "data/mine/val",
                "--config",
                "work/mine/mine.py",
                "--checkpoint",
                checkpoint,
                "--output",
                "predictions",
                "--min-score",
                "0",
            ]
        )
        == 0
    )
    assert re.search(r"1\.png: (cat|dog) \(\d\.\d\d\)", capsys.readouterr().out.replace("0001_", ""))
    assert len(list(Path("predictions").iterdir())) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ('("cat", "dog")', "it has ('cat', 'dog')"),
        ("mask_head=dict(num_classes=2)", "roi_head.mask_head.num_classes=80; write num_classes=2"),
        ('"train.json"', "which does not exist"),
    ],
)
def test_mistakes_are_named_before_the_first_iteration(project, capsys, change, message):
    wrong = {'("cat", "dog")': '("dog", "cat")', '"train.json"': '"tran.json"'}.get(change, "mask_head=dict()")
    config = Path("mine.py").read_text()
    assert change in config
    Path("mine.py").write_text(config.replace(change, wrong))
    assert (
        train.main(
            [
                "--config",
                "mine.py",
                "--output",
                "work/mine",
                "--cfg-options",
                *SMALL,
                f"experiment_name=own-{hash(change)}",
            ]
        )
        == 2
    )
    assert message in capsys.readouterr().err


# likewise for a segmenter, whose crops are of 64 x 64 pixels
SMALL_SEGMENTER = [
    "model.backbone.name=test_vmamba",
    "model.backbone.pretrained=False",
    "model.data_preprocessor.size=(64,64)",
    "model.decode_head.in_channels=[20,32,48,64]",
    "model.decode_head.channels=16",
    "model.auxiliary_head.in_channels=48",
    "model.auxiliary_head.channels=16",
    *(f"model.{head}.norm_cfg.type=BN" for head in ("decode_head", "auxiliary_head")),
    "train_cfg.max_iters=2",
    "default_hooks.checkpoint.interval=2",
    "train_cfg.val_interval=2",
    "train_dataloader.dataset.pipeline.2.scale=(96,64)",
    "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
    *(f"{split}_dataloader.dataset.pipeline.1.scale=(96,64)" for split in ("val", "test")),
    *(line for line in SMALL if line.endswith(("num_workers=0", "persistent_workers=False"))),
]


@pytest.fixture
def segmentation_project(tmp_path, monkeypatch):
    """A folder with `mine.py` as documented for segmenters, beside `configs`, and a tiny data set."""
    document = (ROOT / "docs/openmmlab.md").read_text()
    section = document[document.index("## From your own label maps") :]
    (tmp_path / "mine.py").write_text(re.search(r"```python\n(_base_.*?)```", section, re.DOTALL)[1])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images, masks = (tmp_path / "data/mine" / kind / split for kind in ("images", "masks"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 100, (61, 95, 3), dtype=np.uint8)
            labels = np.zeros((61, 95), np.uint8)
            labels[10:40, 8:43], labels[20:50, 50:85], labels[0] = 1, 2, 255
            pixels[labels == 1], pixels[labels == 2] = 255, (255, 0, 0)
            Image.fromarray(pixels).save(images / f"{number}.jpg")
            Image.fromarray(labels).save(masks / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_steps_to_a_segmenter_run_as_documented(segmentation_project, capsys):
    common = ["--config", "mine.py", "--output", "work/mine", "--cfg-options", *SMALL_SEGMENTER]
    assert train.main(["--auto-scale-lr", *common, "experiment_name=own-segmenter"]) == 0
    checkpoint = "work/mine/iter_2.pth"
    capsys.readouterr()
    tested = ["--checkpoint", checkpoint, "--show-dir", "pictures"]
    own = [
        "experiment_name=own-segmenter-test",
        "visualizer.name=own-segmenter-test",
    ]
    assert evaluate.main([*tested, *common, *own]) == 0
    assert "mIoU" in capsys.readouterr().out
    assert list(Path("pictures").rglob("*.png"))
    told = ["data/mine/images/val", "--config", "work/mine/mine.py", "--checkpoint", checkpoint]
    assert predict.main([*told, "--output", "predictions"]) == 0
    assert re.search(r"1\.png: .*(ground|cat|dog) \d+\.\d %", capsys.readouterr().out.replace("0001_", ""))
    assert len(list(Path("predictions").iterdir())) == 4


def spoil(kind):
    """A mistake in the first label map."""
    mask = Path("data/mine/masks/train/0.png")
    if kind == "missing":
        mask.unlink()
    elif kind == "colour":
        Image.open(mask).convert("RGB").save(mask)
    else:
        Image.fromarray(np.full((61, 95), 3, np.uint8)).save(mask)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("missing", "has no label map"),
        ("colour", "is a colour image"),
        ("beyond", "has the label 3, but the 3 classes are numbered from 0 to 2"),
    ],
)
def test_mistakes_in_label_maps_are_named(segmentation_project, kind, message):
    cfg = Config.fromfile("mine.py")
    init_default_scope("mmseg")

    def check():
        check_classes(nn.Identity(), DATASETS.build(cfg.train_dataloader.dataset))

    check()
    spoil(kind)
    with pytest.raises(ConfigError, match=message):
        check()
