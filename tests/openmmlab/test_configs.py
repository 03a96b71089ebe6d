"""Every config builds, its channels and strides agree, and wrong ones are refused with the right list."""

from pathlib import Path

import pytest

pytest.importorskip("mmseg", reason="mmseg is not installed")
pytest.importorskip("mmcv", reason="mmcv is not installed")

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from torch import nn  # noqa: E402

from visionssm.openmmlab import ConfigError, check_channels, fill_channels  # noqa: E402

ROOT = Path(__file__).resolve().parents[2] / "configs"
DETECTION = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "detection").glob("*/*.py"))
SEGMENTATION = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "segmentation").glob("*/*.py"))
SIZE = (128, 256)


def leaves_slow(names):
    """Parameters of a test; the configs that only change another one are slow."""
    marks = {name: [pytest.mark.slow] if '_base_ = "' in (ROOT / name).read_text() else [] for name in names}
    return [pytest.param(name, marks=marks[name]) for name in names]


def read(name):
    cfg = Config.fromfile(ROOT / name)
    cfg.model.backbone.pretrained = False  # no downloads
    return cfg


def build(cfg):
    """A config's model without values, which takes no time and no memory."""
    init_default_scope(cfg.default_scope)
    with torch.device("meta"):
        return MODELS.build(cfg.model).eval()


def maps_of(model):
    """What the backbone gives, and what the heads read."""
    with torch.device("meta"), torch.no_grad():
        maps = model.backbone(torch.empty(1, 3, *SIZE))
        return maps, maps if getattr(model, "neck", None) is None else model.neck(maps)


def strides_of(maps):
    return [tuple(full // side for full, side in zip(SIZE, y.shape[2:], strict=True)) for y in maps]


@pytest.mark.parametrize("name", DETECTION + SEGMENTATION)
def test_says_what_is_published_and_is_self_contained(name):
    text = (ROOT / name).read_text()
    assert any(word in text for word in ("Published: ", "No result is published", "A recipe of this project"))
    assert "mmdet::" not in text and "mmseg::" not in text
    cfg = read(name)
    assert "visionssm.openmmlab" in cfg.custom_imports.imports
    assert {hook["type"] for hook in cfg.custom_hooks} == {"ChannelCheckHook", "ClassCheckHook"}
    if cfg.train_cfg.type == "EpochBasedTrainLoop":
        assert cfg.train_dataloader.sampler.type == "DefaultSampler"
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs
    else:
        assert cfg.train_dataloader.sampler.type == "InfiniteSampler"
        assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters


@pytest.mark.parametrize("name", DETECTION)
def test_masks_are_measured_where_there_are_any(name):
    cfg = read(name)
    masks = "mask_head" in cfg.model.get("roi_head", {})
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        assert list(evaluator.metric) == (["bbox", "segm"] if masks else ["bbox"])


@pytest.mark.parametrize("name", leaves_slow(DETECTION))
def test_detectors_channels_and_strides_agree(name):
    cfg = read(name)
    model = build(cfg)
    check_channels(model)
    if type(model.neck).__name__ == "SSDNeck":
        check_single_shot(cfg, model)
        return
    maps, levels = maps_of(model)
    assert strides_of(maps) == [(stride, stride) for stride in model.backbone.out_strides]
    assert [y.shape[1] for y in maps] == list(model.backbone.out_channels)
    plain = len(set(model.backbone.out_strides)) == 1
    first = model.neck[0] if isinstance(model.neck, nn.Sequential) else model.neck
    coarse = model.backbone.out_strides[0] > 4
    assert type(first).__name__ == ("SimpleFPN" if plain else "FinerFPN" if coarse else "FPN")

    head = model.rpn_head if hasattr(model, "rpn_head") else model.bbox_head
    assert strides_of(levels) == head.prior_generator.strides
    assert {y.shape[1] for y in levels} == {head.in_channels}
    if hasattr(model, "roi_head"):
        read_by = [model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor]
        extractors = [e for one in read_by for e in (one if isinstance(one, nn.ModuleList) else [one])]
        for extractor in extractors:
            assert [(s, s) for s in extractor.featmap_strides] == strides_of(levels)[:4]
            assert extractor.out_channels == levels[0].shape[1]


def check_single_shot(cfg, model):
    """Images of one size: the levels, their channels and their anchors are those that the head is told."""
    sizes = {
        step.scale
        for loader in (cfg.train_dataloader.dataset.dataset, cfg.val_dataloader.dataset)
        for step in loader.pipeline
        if step.type == "Resize"
    }
    ((side, _),) = sizes
    with torch.device("meta"), torch.no_grad():
        levels = model.neck(model.backbone(torch.empty(1, 3, side, side)))
        scores, boxes = model.bbox_head(levels)
    assert model.backbone.out_strides == (16, 32)
    generator = cfg.model.bbox_head.anchor_generator
    assert [level.shape[1] for level in levels] == list(cfg.model.bbox_head.in_channels)
    assert [round(side / stride) for stride in generator.strides] == [level.shape[2] for level in levels]
    assert list(generator.min_sizes[1:]) == list(generator.max_sizes[:-1]) and generator.max_sizes[-1] == side
    assert [s.shape[1:] for s in scores] == [(6 * 81, *level.shape[2:]) for level in levels]
    assert [b.shape[1:] for b in boxes] == [(6 * 4, *level.shape[2:]) for level in levels]


@pytest.mark.parametrize("name", leaves_slow(SEGMENTATION))
def test_segmenters_channels_agree(name):
    cfg = read(name)
    model = build(cfg)
    check_channels(model)
    if cfg.model.type == "VisionSSMSegmentor":  # undivided: what stands for the maps are the logits
        with torch.device("meta"), torch.no_grad():
            logits = model.decode_head(model.backbone(torch.empty(1, cfg.model.backbone.get("in_chans", 3), *SIZE)))
        assert logits.shape == (1, model.decode_head.num_classes, *SIZE)
        return
    maps, levels = maps_of(model)
    assert strides_of(maps) == [(stride, stride) for stride in model.backbone.out_strides]
    channels = [y.shape[1] for y in levels]
    index = model.decode_head.in_index
    read_by = [channels[i] for i in ([index] if isinstance(index, int) else index)]
    found = model.decode_head.in_channels
    assert read_by == ([found] if isinstance(found, int) else list(found))
    if model.with_auxiliary_head:
        assert channels[model.auxiliary_head.in_index] == model.auxiliary_head.in_channels
    with torch.device("meta"), torch.no_grad():
        logits = model.decode_head(levels)
    finest = levels[index if isinstance(index, int) else index[0]]
    assert logits.shape == (1, model.decode_head.num_classes, *finest.shape[2:])


@pytest.mark.parametrize(
    "name, wrong, right",
    [
        ("detection/digits/mask_rcnn_test_vmamba_digits.py", [96, 192, 384, 768], r"\[20, 32, 48, 64\]"),
        ("detection/vim/cascade_mask_rcnn_vim_tiny_large_jitter_coco.py", 384, "192"),
    ],
)
def test_wrong_channels_of_a_neck_are_refused(name, wrong, right):
    cfg = read(name)
    cfg.model.neck.in_channels = wrong
    with pytest.raises(ValueError, match=f"the neck .*write in_channels={right}"):
        check_channels(build(cfg))


def without_channels(cfg):
    """Take out all that the launcher fills in, and return it."""
    model, found = cfg.model, []
    necks = model.get("neck") or []
    for part in (
        necks[0] if isinstance(necks, list) and necks else necks,
        *map(model.get, ("decode_head", "auxiliary_head")),
    ):
        if part:
            found.append(part.pop("embed_dim" if part.type == "Feature2Pyramid" else "in_channels"))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "detection/vmamba/mask_rcnn_vmamba_tiny_s1l8_1x_coco.py",  # FPN
        "detection/vim/cascade_mask_rcnn_vim_tiny_large_jitter_coco.py",  # SimpleFPN
        "detection/plainmamba/retinanet_plainmamba_l1_1x_coco.py",  # two necks
        "segmentation/vmamba/upernet_vmamba_tiny_s1l8_160k_ade20k-512x512.py",  # heads alone
        "segmentation/vim/upernet_vim_tiny_60k_ade20k-512x512.py",  # Feature2Pyramid and heads
    ],
)
def test_missing_channels_are_filled_in(name):
    cfg = read(name)
    fill_channels(cfg)
    assert cfg.to_dict() == read(name).to_dict(), "what is said stays"
    expected = without_channels(cfg)
    assert expected
    fill_channels(cfg)
    assert without_channels(cfg) == expected


def test_a_head_that_reads_a_map_that_is_not_there_is_refused():
    cfg = read("segmentation/digits/upernet_test_vmamba_digits.py")
    cfg.model.auxiliary_head.update(in_channels=None, in_index=4)
    with pytest.raises(ConfigError, match="in_index=4 of FCNHead"):
        fill_channels(cfg)


def test_wrong_channels_of_the_first_of_two_necks_are_refused():
    cfg = read("detection/plainmamba/retinanet_plainmamba_l1_1x_coco.py")
    cfg.model.neck[0].in_channels = 384
    with pytest.raises(ValueError, match="SimpleFPN .*write in_channels=192"):
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
    cfg = read("detection/vmamba/mask_rcnn_vmamba_tiny_s1l8_1x_coco.py")
    cfg.model.backbone.out_indices = (0, 7)
    with pytest.raises(ValueError, match="from 0 to 3"):
        build(cfg)
