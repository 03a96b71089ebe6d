"""Every config builds, its channels and strides agree, and wrong ones are refused with the right list."""
from pathlib import Path

import pytest

pytest.importorskip("mmseg", reason="mmseg is not installed")
pytest.importorskip("mmcv", reason="mmcv is not installed")

from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from torch import nn  # noqa: E402

from visionssm.openmmlab import check_channels  # noqa: E402

ROOT = Path(__file__).resolve().parents[2] / "configs"
DETECTION = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "detection").glob("*/*.py"))
SEGMENTATION = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "segmentation").glob("*/*.py"))
# one of each family runs with every change
FAST = {
    "detection/vmamba/mask_rcnn_vmamba_tiny_s1l8_1x_coco.py",
    "detection/plainmamba/retinanet_plainmamba_l1_1x_coco.py",
    "detection/vim/cascade_mask_rcnn_vim_tiny_large_jitter_coco.py",
    "detection/localmamba/mask_rcnn_localvim_tiny_large_jitter_coco.py",
    "detection/digits/mask_rcnn_test_vmamba_digits.py",
    "segmentation/vim/upernet_vim_tiny_60k_ade20k-512x512.py",
    "segmentation/groupmamba/upernet_groupmamba_tiny_160k_ade20k-512x512.py",
    "segmentation/localmamba/upernet_localvim_tiny_160k_ade20k-512x512.py",
    "segmentation/plainmamba/upernet_plainmamba_l1_160k_ade20k-512x512.py",
    "segmentation/digits/upernet_test_vmamba_digits.py",
}


def _params(names):
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in names]


def read(name):
    cfg = Config.fromfile(ROOT / name)
    cfg.model.backbone.pretrained = False  # no downloads
    return cfg


def build(cfg):
    if cfg.default_scope == "mmdet":
        pytest.importorskip("mmcv._ext", reason="mmcv's operators are not compiled")
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def test_the_fast_ones_exist():
    assert FAST <= {*DETECTION, *SEGMENTATION}


@pytest.mark.parametrize("name", DETECTION + SEGMENTATION)
def test_says_what_is_published_and_is_self_contained(name):
    text = (ROOT / name).read_text()
    assert any(word in text for word in ("Published: ", "No result is published", "A recipe of this project"))
    assert "mmdet::" not in text and "mmseg::" not in text
    cfg = read(name)
    assert "visionssm.openmmlab" in cfg.custom_imports.imports
    assert {hook["type"] for hook in cfg.custom_hooks} == {"ChannelCheckHook"}
    if cfg.train_cfg.type == "EpochBasedTrainLoop":
        assert cfg.train_dataloader.sampler.type == "DefaultSampler"
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs
    else:
        assert cfg.train_dataloader.sampler.type == "InfiniteSampler"
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters


@pytest.mark.parametrize("name", _params(DETECTION))
def test_detector_builds_and_its_strides_agree(name):
    model = build(read(name))
    check_channels(model)
    plain = len(set(model.backbone.out_strides)) == 1
    first = model.neck[0] if isinstance(model.neck, nn.Sequential) else model.neck
    assert type(first).__name__ == ("SimpleFPN" if plain else "FPN")
    # a pyramid on a plain model's map begins at a quarter of its stride
    start = model.backbone.out_strides[0] // 4 if plain else model.backbone.out_strides[0]
    last = model.neck[-1] if isinstance(model.neck, nn.Sequential) else model.neck
    strides = [start * 2 ** (getattr(last, "start_level", 0) + i) for i in range(last.num_outs)]
    head = model.rpn_head if hasattr(model, "rpn_head") else model.bbox_head
    assert [s[0] for s in head.prior_generator.strides] == strides
    if hasattr(model, "roi_head"):
        extractor = model.roi_head.bbox_roi_extractor
        extractor = extractor[0] if isinstance(extractor, nn.ModuleList) else extractor
        assert list(extractor.featmap_strides) == strides[:4]


@pytest.mark.parametrize("name", DETECTION)
def test_a_detectors_neck_reads_what_its_backbone_gives(name):
    # without mmdet, which needs mmcv's compiled operators
    cfg = read(name)
    backbone = MODELS.build(cfg.model.backbone)
    neck = cfg.model.neck[0] if isinstance(cfg.model.neck, list) else cfg.model.neck
    if neck.type == "SimpleFPN":
        assert neck.in_channels == backbone.out_channels[-1]
        assert set(backbone.out_strides) == {16}
    else:
        assert list(neck.in_channels) == list(backbone.out_channels)
        assert backbone.out_strides == (4, 8, 16, 32)


@pytest.mark.parametrize("name", _params(SEGMENTATION))
def test_segmenter_builds_and_its_channels_agree(name):
    model = build(read(name))
    check_channels(model)
    neck = getattr(model, "neck", None)
    channels = list(model.backbone.out_channels)
    if neck is not None:
        assert neck.upsample_2x[0].in_channels == channels[1]
    assert list(model.decode_head.in_channels) == channels
    assert model.auxiliary_head.in_channels == channels[model.auxiliary_head.in_index]


def test_wrong_channels_of_a_neck_are_refused():
    cfg = read("detection/digits/mask_rcnn_test_vmamba_digits.py")
    cfg.model.neck.in_channels = [96, 192, 384, 768]
    with pytest.raises(ValueError, match=r"write in_channels=\[20, 32, 48, 64\]"):
        check_channels(build(cfg))


def test_wrong_channels_of_a_head_are_refused():
    cfg = read("segmentation/digits/upernet_test_vmamba_digits.py")
    cfg.model.decode_head.in_channels = [96, 192, 384, 768]
    with pytest.raises(ValueError, match=r"decode_head .*write in_channels=\[20, 32, 48, 64\]"):
        check_channels(build(cfg))
    cfg = read("segmentation/digits/upernet_test_vmamba_digits.py")
    cfg.model.auxiliary_head.in_channels = 7
    with pytest.raises(ValueError, match="auxiliary_head .*write in_channels=48"):
        check_channels(build(cfg))
    cfg.model.auxiliary_head.in_index = 4
    with pytest.raises(ValueError, match="returns 4"):
        check_channels(build(cfg))


def test_a_wrong_backbone_is_refused():
    cfg = read("segmentation/digits/upernet_test_vmamba_digits.py")
    cfg.model.backbone.name = "test_vmamb"
    with pytest.raises(ValueError, match="did you mean 'test_vmamba'"):
        build(cfg)
    cfg = read("segmentation/digits/upernet_test_vmamba_digits.py")
    cfg.model.backbone.out_indices = (0, 7)
    with pytest.raises(ValueError, match="from 0 to 3"):
        build(cfg)
