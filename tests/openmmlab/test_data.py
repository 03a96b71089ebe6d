"""Data that is missing or does not fit the model is refused before the first iteration; needs mmengine only."""

import json

import pytest

pytest.importorskip("mmengine", reason="the OpenMMLab stack is not installed")

from mmengine.config import Config  # noqa: E402
from torch import nn  # noqa: E402

from visionssm.openmmlab import requirements  # noqa: E402
from visionssm.openmmlab.data import check_classes, check_data, move_data  # noqa: E402


@pytest.fixture
def cfg(tmp_path):
    """A config whose data are below `data/`, wrapped as in repeated data sets, and a folder that has them."""
    (tmp_path / "train").mkdir()
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    (tmp_path / "train.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    dataset = dict(
        type="CocoDataset",
        data_root="data/",
        ann_file="train.json",
        data_prefix=dict(img="train/"),
        metainfo=dict(classes=("dog", "cat")),
    )
    return Config(
        dict(
            train_dataloader=dict(dataset=dict(type="RepeatDataset", times=2, dataset=dataset)),
            val_dataloader=None,
            test_dataloader=dict(dataset=dict(type="ConcatDataset", datasets=[dataset])),
            test_evaluator=dict(type="CocoMetric", ann_file="data/train.json"),
        )
    )


def test_another_folder_takes_the_place_of_all_roots(cfg, tmp_path):
    move_data(cfg, str(tmp_path))
    assert cfg.train_dataloader.dataset.dataset.data_root == f"{tmp_path}/"
    assert cfg.test_dataloader.dataset.datasets[0].data_root == f"{tmp_path}/"
    assert cfg.test_evaluator.ann_file == f"{tmp_path}/train.json"
    assert cfg.train_dataloader.dataset.dataset.ann_file == "train.json", "relative to the root as before"
    check_data(cfg, ["train", "val", "test"])
    cfg.test_dataloader.dataset.datasets[0].data_root = "elsewhere"
    with pytest.raises(ValueError, match="found .*elsewhere"):
        move_data(cfg, "x")


def test_missing_files_are_named(cfg, tmp_path):
    with pytest.raises(ValueError, match="train_dataloader reads 'data/', which does not exist"):
        check_data(cfg, ["train"])
    move_data(cfg, str(tmp_path))
    cfg.test_evaluator.ann_file = "absent.json"
    check_data(cfg, ["train"])
    with pytest.raises(ValueError, match="test_evaluator reads 'absent.json'"):
        check_data(cfg, ["test"])
    (tmp_path / "train").rmdir()
    with pytest.raises(ValueError, match="train/'"):
        check_data(cfg, ["train"])


@pytest.mark.parametrize("classes", [("dog", "cow"), ("cat", "dog"), "dog"])
def test_categories_must_be_named_in_their_order(cfg, tmp_path, classes):
    move_data(cfg, str(tmp_path))
    cfg.train_dataloader.dataset.dataset.metainfo.classes = classes
    with pytest.raises(ValueError, match=r"it has \('dog', 'cat'\)"):
        check_data(cfg, ["train"])


def test_some_of_the_categories_may_be_left_out(cfg, tmp_path):
    move_data(cfg, str(tmp_path))
    cfg.train_dataloader.dataset.dataset.metainfo.classes = ("cat",)
    check_data(cfg, ["train"])


class Dataset:
    ann_file = "train.json"

    def __init__(self, classes, cat_ids, length=3):
        self.metainfo, self.cat_ids, self.length = dict(classes=classes), cat_ids, length

    def __len__(self):
        return self.length


class Detector(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.backbone, self.rpn_head, self.roi_head = nn.Identity(), nn.Identity(), nn.Module()
        self.backbone.num_classes = 0  # timm's name for the classifier
        self.rpn_head.num_classes = 1
        self.roi_head.bbox_head = nn.Identity()
        self.roi_head.bbox_head.num_classes = num_classes


def test_heads_and_annotations_must_have_the_classes():
    check_classes(Detector(2), Dataset(("cat", "dog"), [1, 2]))
    with pytest.raises(ValueError, match="roi_head.bbox_head.num_classes=80; write num_classes=2"):
        check_classes(Detector(80), Dataset(("cat", "dog"), [1, 2]))
    with pytest.raises(ValueError, match="1 of the 2 classes .* are among the categories of 'train.json'"):
        check_classes(Detector(2), Dataset(("cat", "cow"), [1]))
    with pytest.raises(ValueError, match="no image"):
        check_classes(Detector(2), Dataset(("cat", "dog"), [1, 2], length=0))
    with pytest.raises(ValueError, match="got the string 'cat'"):
        check_classes(Detector(1), Dataset("cat", [1]))


@pytest.mark.parametrize(
    "scope, absent, message",
    [
        ("mmdet", "mmcv", "needs mmcv, which is not installed: pip install 'visionssm"),
        ("mmseg", "mmseg", "needs mmseg, which is not installed"),
    ],
)
def test_what_is_not_installed_is_named(monkeypatch, scope, absent, message):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == absent else object())
    with pytest.raises(ValueError, match=message):
        requirements.check_installed(scope)
    requirements.check_installed(None)


def test_an_opencv_that_does_not_load_is_named(monkeypatch):
    pytest.importorskip("mmcv", reason="mmcv is not installed")

    def without_opencv(name):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(requirements, "import_module", without_opencv)
    with pytest.raises(ValueError, match="libGL.* --force-reinstall opencv-python-headless"):
        requirements.check_installed("mmseg")
