"""Undivided networks in mmseg: losses reach every parameter, medical layouts are read, mistakes are named."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("mmseg.models", reason="mmseg or mmcv is not installed")

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import DATASETS, MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

import visionssm.openmmlab  # noqa: F401
import visionssm.openmmlab.medical
import visionssm.openmmlab.segmentor  # noqa: F401
from visionssm.commands import prepare_digits
from visionssm.errors import CheckpointError, UserError
from visionssm.openmmlab.errors import ConfigError
from visionssm.segmentation import create_model

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "segmentation"
META = dict(img_shape=(61, 70), ori_shape=(61, 70), pad_shape=(61, 70), padding_size=[0] * 4)


def segmentor(classes=3, **backbone):
    register_all_modules(init_default_scope=True)
    test_cfg = Config(dict(mode="slide", crop_size=(32, 32), stride=(16, 16)))
    return MODELS.build(
        dict(
            type="VisionSSMSegmentor",
            backbone={"name": "test_ultralight_vm_unet", **backbone},
            decode_head=dict(num_classes=classes),
            train_cfg={},
            test_cfg=test_cfg,
        )
    )


def sample(classes=3):
    result = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, classes, (1, 61, 70))))
    result.set_metainfo(META)
    return result


@pytest.mark.parametrize("backbone", [{}, dict(name="test_umamba_bot", in_chans=3, deep_supervision=True)])
def test_trains_and_predicts(backbone):
    torch.manual_seed(0)
    model = segmentor(**backbone)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    losses = model.loss(torch.randn(2, 3, 61, 70), [sample(), sample()])
    losses["decode.loss_ce"].backward()
    assert not list(model.decode_head.parameters())
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert all("head" in name for name in without) and len(without) <= 2 * bool(backbone)  # the coarsest counts nothing
    model.eval()
    with torch.no_grad():
        assert model.inference(torch.randn(1, 3, 61, 70), [dict(META)]).shape == (1, 3, 61, 70)


def test_reads_a_file_of_the_whole_network(tmp_path):
    network = create_model("test_ultralight_vm_unet", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    model = segmentor(pretrained=str(tmp_path / "own.pth"))
    model.init_weights()
    ours = model.backbone.network.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in network.state_dict().items())
    with pytest.raises(CheckpointError, match="num_classes"):
        segmentor(5, pretrained=str(tmp_path / "own.pth"))
    with pytest.raises(ConfigError, match="did you mean 'dims'"):
        segmentor(dim=(8, 8))
    with pytest.raises(ConfigError, match="must be a file or False"):
        segmentor(pretrained=True)


@pytest.mark.parametrize(
    "layout, config, channels",
    [("isic", "ultralight_vm_unet_isic-256x256", 3), ("synapse", "vm_unet_synapse-224x224", 1)],
)
def test_layouts_of_medical_segmentation(layout, config, channels, tmp_path):
    numbers = ["--num-train", "3", "--num-validation", "2"]
    options = ["--scenes", "--layout", layout, "--output", str(tmp_path / "data"), *numbers]
    assert prepare_digits.main(options) == 0
    assert prepare_digits.main(options) == 2  # it is not empty
    cfg = Config.fromfile(CONFIGS / layout / f"{config}.py")
    init_default_scope("mmseg")
    side = cfg.train_dataloader.dataset.pipeline[-4 if layout == "synapse" else -5].scale
    for split, count in (("train", 3), ("val", 2)):
        dataset = DATASETS.build(dict(cfg[f"{split}_dataloader"].dataset, data_root=str(tmp_path / "data")))
        assert len(dataset) == count
        items = list(dataset)
        item, labels = items[0], items[0]["data_samples"].gt_sem_seg.data
        assert item["inputs"].shape == (channels, *side)
        shape = side if split == "train" else item["data_samples"].ori_shape
        assert labels.shape == (1, *shape)
        largest = max(int(item["data_samples"].gt_sem_seg.data.max()) for item in items)
        assert 0 < largest < len(dataset.metainfo["classes"])
    if layout == "synapse":
        path = dataset.get_data_info(0)["img_path"]
        np.savez(path, image=np.zeros((4, 5), np.float32), label=np.zeros((5, 4), np.uint8))
        with pytest.raises(UserError, match="labels for"):
            dataset[0]
