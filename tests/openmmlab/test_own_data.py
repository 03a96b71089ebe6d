"""The four steps of docs/openmmlab.md, from annotations in COCO's layout to pictures, as they are written there."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mmdet", reason="mmdet is not installed")
pytest.importorskip("mmcv", reason="mmcv is not installed")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from visionssm.commands import openmmlab_predict as predict  # noqa: E402
from visionssm.commands import openmmlab_test as evaluate  # noqa: E402
from visionssm.commands import openmmlab_train as train  # noqa: E402

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
