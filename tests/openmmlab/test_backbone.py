"""The backbone alone; needs mmengine only."""

import json

import pytest

pytest.importorskip("mmengine", reason="the OpenMMLab stack is not installed")

import timm  # noqa: E402
import torch  # noqa: E402
from mmengine.model import BaseModule  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402
from torch import nn  # noqa: E402

from tests.families import PICO, at_size  # noqa: E402
from tests.parity import DATA, compare_summary, fill_state_dict, reference_input  # noqa: E402
from tests.parity import localmamba as localmamba_parity  # noqa: E402
from tests.parity import plainmamba as plainmamba_parity  # noqa: E402
from tests.parity import vmamba as vmamba_parity  # noqa: E402
from visionssm.checkpoints import CheckpointError  # noqa: E402
from visionssm.models._builder import VisionModel  # noqa: E402
from visionssm.openmmlab import FinerFPN, SimpleFPN, VisionSSMBackbone  # noqa: E402

to_ours = VisionModel.checkpoint_filter_fn


class Detector(BaseModule):
    """Initialises its parts as mmdet's and mmseg's models do."""


@pytest.mark.parametrize("name", [*PICO, "resnet18"])
def test_maps_have_the_promised_channels_and_strides(name):
    for height, width in ((64, 96), (67, 93)):
        bound = dict(img_size=(height, width)) if at_size(name, 64) else {}
        backbone = MODELS.build(dict(type="VisionSSMBackbone", name=name, model_args=bound)).eval()
        with torch.no_grad():
            maps = backbone(torch.randn(2, 3, height, width))
        assert isinstance(maps, tuple)
        for y, channels, stride in zip(maps, backbone.out_channels, backbone.out_strides, strict=True):
            assert y.shape[:2] == (2, channels) and y.is_contiguous()
            for side, full in zip(y.shape[2:], (height, width), strict=True):
                assert full // stride <= side <= -(-full // stride)
    strides = [level["reduction"] for level in timm.create_model(name, device="meta").feature_info]
    if len(set(strides)) == len(strides):  # one level a stride
        assert backbone.out_strides == tuple(stride for stride in strides if stride >= 4)
        assert len(backbone.out_strides) >= 3
    else:
        assert set(backbone.out_strides) <= set(strides) and len(backbone.out_strides) >= 2


def test_plain_models_give_the_ends_of_their_quarters():
    assert VisionSSMBackbone("vim_tiny", model_args=dict(embed_dim=32)).out_indices == (5, 11, 17, 23)


def test_levels_by_index_and_by_stride():
    assert VisionSSMBackbone("test_vmamba", out_indices=[1, -1]).out_indices == (1, 3)
    backbone = VisionSSMBackbone("test_vmamba", out_strides=(8, 16))
    assert backbone.out_indices == (1, 2) and backbone.out_channels == (32, 48)
    assert VisionSSMBackbone("resnet18", out_strides=(4, 32)).out_indices == (1, 4)
    # what is not needed is not kept
    assert not any(k.startswith("model.stages.3") for k in backbone.state_dict())


def test_batches_of_different_sizes_follow_each_other():
    backbone = VisionSSMBackbone("test_localvim")
    for batch, height, width in ((1, 33, 70), (3, 64, 64), (2, 17, 90)):
        assert backbone(torch.randn(batch, 3, height, width))[0].shape[0] == batch


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(name="vmamba_tiny_s1l9"), "did you mean 'vmamba_tiny_s1l8'"),
        (dict(name="test_vmamba", out_indices=(0, 4)), "from 0 to 3"),
        (dict(name="test_vmamba", out_indices=(1, 0)), "ascending"),
        (dict(name="test_vmamba", out_strides=(2, 4)), r"no level of stride \[2\]"),
        (dict(name="test_vmamba", out_indices=(0,), out_strides=(4,)), "not both"),
        (dict(name="test_vmamba", out_norm="batchnorm"), "out_norm must be"),
        (dict(name="test_vmamba", out_norm=("layernorm",)), "1 norms for 4 outputs"),
        (dict(name="test_vmamba", out_norm="model"), "last level"),
        (dict(name="test_vmamba", frozen_stages=5), "frozen_stages must be from -1"),
        (dict(name="test_vmamba", scan="crss"), "cross"),
        (dict(name="test_vmamba", pretrained=True, init_cfg=dict(type="Pretrained", checkpoint="x")), "not both"),
        (dict(name="test_vmamba", feature_stream=False), "plain models"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VisionSSMBackbone(**arguments)


@pytest.mark.parametrize("name", PICO)
def test_a_classifiers_file_is_loaded_and_survives_init_weights(name, tmp_path):
    torch.manual_seed(1)
    # a training checkpoint of a classifier of another number of classes
    classifier = timm.create_model(name, num_classes=7)
    path = tmp_path / "last.pth.tar"
    torch.save({"arch": name, "state_dict": classifier.state_dict()}, path)
    backbone = MODELS.build(dict(type="VisionSSMBackbone", name=name, pretrained=str(path)))
    detector = Detector()
    detector.backbone = backbone
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    detector.init_weights()
    backbone.init_weights()
    after = backbone.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    weights = classifier.state_dict()
    kept = [k for k in after if k.startswith("model.")]
    assert kept and all(torch.equal(after[k], weights[k.removeprefix("model.")]) for k in kept)


def test_a_foreign_models_file_is_loaded_strictly(tmp_path):
    path = tmp_path / "resnet.pth"
    classifier = timm.create_model("resnet18", num_classes=3)
    torch.save(classifier.state_dict(), path)
    backbone = VisionSSMBackbone("resnet18", pretrained=path)
    assert torch.equal(backbone.model.layer4[0].conv1.weight, classifier.layer4[0].conv1.weight)
    torch.save(timm.create_model("test_vmamba").state_dict(), path)
    with pytest.raises(CheckpointError, match="missing"):
        VisionSSMBackbone("resnet18", pretrained=path)


def test_averaged_weights_before_raw_ones(tmp_path):
    raw, averaged = (timm.create_model("test_vmamba", num_classes=7).state_dict() for _ in range(2))
    torch.save({"state_dict": raw, "state_dict_ema": averaged}, tmp_path / "last.pth.tar")
    backbone = VisionSSMBackbone("test_vmamba", pretrained=tmp_path / "last.pth.tar")
    assert torch.equal(backbone.model.stem.conv1.weight, averaged["stem.conv1.weight"])


def test_a_file_that_loads_nothing_is_an_error(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"something": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="missing"):
        VisionSSMBackbone("test_vmamba", pretrained=path)
    with pytest.raises(CheckpointError, match="absent.pth does not exist"):
        VisionSSMBackbone("test_vmamba", pretrained=tmp_path / "absent.pth")
    backbone = VisionSSMBackbone("test_vmamba", init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    with pytest.raises(CheckpointError, match="missing"):
        backbone.init_weights()


def test_a_detectors_backbone_is_loaded_by_init_cfg(tmp_path):
    source = VisionSSMBackbone("test_vmamba")
    path = tmp_path / "detector.pth"
    weights = {f"backbone.{k}": v for k, v in source.state_dict().items()} | {"neck.weight": torch.zeros(1)}
    torch.save({"state_dict": weights, "meta": {}}, path)
    backbone = VisionSSMBackbone(
        "test_vmamba", init_cfg=dict(type="Pretrained", checkpoint=str(path), prefix="backbone.")
    )
    backbone.init_weights()
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in backbone.state_dict().items())
    # once only, as in every mmengine module
    nn.init.zeros_(backbone.out_norms[0].weight)
    backbone.init_weights()
    assert not backbone.out_norms[0].weight.any()


@pytest.mark.parametrize("name", PICO)
def test_frozen_stages_stay_frozen(name):
    backbone = VisionSSMBackbone(name, frozen_stages=2, drop_path_rate=0.3).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    sum(y.square().mean() for y in backbone(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    unit = "blocks" if hasattr(backbone.model, "blocks") else "stages"
    levels = [level["module"] for level in backbone.model.feature_info]
    apart = levels[:2] == [f"{unit}.0", f"{unit}.1"]  # parallel branches, or blocks that merge tokens, are not
    frozen = (
        "model.stem",
        "model.patch_embed",
        "model.pos_embed",
        "model.cls_token",
        f"model.{unit}.0.",
        f"model.{unit}.1.",
        *(("out_norms.0.", "out_norms.1.") if apart and len(levels) == len(backbone.out_strides) else ()),
    )
    for key, value in backbone.state_dict().items():
        if key.startswith(frozen):
            assert torch.equal(value, before[key]), key
    trained = [k for k, p in backbone.named_parameters() if p.requires_grad]
    assert trained and not any(k.startswith(frozen) for k in trained)
    assert any(not torch.equal(backbone.state_dict()[k], before[k]) for k in trained)
    stages = getattr(backbone.model, unit)
    assert not any(m.training for stage in list(stages)[:2] for m in stage.modules())
    assert all(m.training for m in stages[2].modules())


def test_norm_eval_keeps_batch_norms_in_evaluation_mode():
    for norm_eval in (False, True):
        backbone = VisionSSMBackbone("resnet18", norm_eval=norm_eval).train()
        assert {m.training for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {not norm_eval}


@pytest.mark.parametrize("name", PICO)
def test_checkpointing_changes_no_gradient(name):
    x = torch.randn(2, 3, 48, 32)
    gradients = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        bound = dict(img_size=(48, 32)) if at_size(name, 32) else {}
        backbone = VisionSSMBackbone(name, with_cp=with_cp, model_args=bound).train()
        sum(y.square().mean() for y in backbone(x)).backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert (plain is None) == (checkpointed is None)
        if plain is not None:
            torch.testing.assert_close(plain, checkpointed)


def test_scan_and_drop_path_reach_the_model():
    backbone = VisionSSMBackbone("test_vmamba", scan="snake", drop_path_rate=0.5)
    assert backbone.model.scan == "snake"
    assert backbone.model.stages[3].blocks[-1].drop_path1.drop_prob == 0.5


def test_simple_fpn_makes_a_pyramid_of_the_last_map():
    fpn = SimpleFPN(48, 16, num_outs=5)
    maps = fpn([torch.zeros(1, 48, 1, 1), torch.randn(2, 48, 4, 6)])
    assert [tuple(y.shape) for y in maps] == [
        (2, 16, 16, 24),
        (2, 16, 8, 12),
        (2, 16, 4, 6),
        (2, 16, 2, 3),
        (2, 16, 1, 2),
    ]
    with pytest.raises(ValueError, match="one number"):
        SimpleFPN([48, 48])
    with pytest.raises(ValueError, match="at least 4"):
        SimpleFPN(48, num_outs=3)


def test_finer_pyramid():
    fpn = FinerFPN([24, 40, 56], 16)
    maps = [torch.randn(1, 24, 5, 7), torch.randn(1, 40, 3, 4), torch.randn(1, 56, 2, 2)]
    levels = fpn(maps)
    assert [tuple(y.shape) for y in levels] == [(1, 16, h, w) for h, w in ((20, 28), (10, 14), (5, 7), (3, 4), (2, 2))]
    sum(y.sum() for y in levels).backward()
    assert all(p.grad is not None for p in fpn.parameters())
    with torch.no_grad():
        coarse = fpn([maps[0], maps[1], maps[2] + 1])
    assert not any(torch.equal(before, after) for before, after in zip(levels, coarse, strict=True))  # top down
    levels = FinerFPN([24, 40, 56], 16, num_finer=1, num_coarser=2)(maps)
    assert [tuple(y.shape[2:]) for y in levels] == [(10, 14), (5, 7), (3, 4), (2, 2), (1, 1), (1, 1)]
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])
    for arguments in (dict(in_channels=24), dict(in_channels=[24], num_finer=0)):
        with pytest.raises(ValueError, match="FinerFPN reads several maps"):
            FinerFPN(**arguments)


def _vmamba(record):
    args = vmamba_parity.model_args(record["config"])
    return dict(name="test_vmamba", model_args=args), to_ours, "outnorm"


def _localvmamba(record):
    args = localmamba_parity.localvmamba_args(record["config"])
    return dict(name="test_localvmamba", model_args=args), to_ours, "outnorm"


def _localvim(record):
    args = dict(localmamba_parity.localvim_args(record["config"]), d_state=16)
    return (
        dict(name="test_localvim", model_args=args, feature_stream=False),
        VisionModel.checkpoint_filter_fn,
        "outnorm_",
    )


def _plainmamba(record):
    args = plainmamba_parity.model_args(record["config"])
    norms = ("layernorm", "model")
    return (
        dict(name="test_plainmamba", model_args=args, out_norm=norms, out_norm_eps=1e-6),
        VisionModel.checkpoint_filter_fn,
        "norm_l",
    )


@pytest.mark.parametrize(
    "path, family",
    [
        ("goldens/vmamba_custom_ln2d_r2-backbone", _vmamba),
        ("goldens/vmamba_custom_v0-backbone", _vmamba),
        ("ops/localmamba-backbone-local_vssm", _localvmamba),
        ("ops/localmamba-backbone-local_vim", _localvim),
        ("ops/localmamba-backbone-local_vim_ln", _localvim),
        ("ops/plainmamba-backbone", _plainmamba),
    ],
)
def test_matches_the_originals_dense_wrapper(path, family):
    record = json.loads((DATA / f"{path}.json").read_text())
    recorded = record.get("outputs") or record["stages"]
    arguments, convert, norm_prefix = family(record)
    backbone = VisionSSMBackbone(**arguments, out_indices=record.get("out_indices", range(len(recorded)))).eval()
    weights = fill_state_dict(record["keys"], record)
    norms = {k: weights.pop(k) for k in list(weights) if k.startswith(norm_prefix)}
    if "ln1.weight" in weights:
        norms |= {f"ln1.norm.{kind}": weights.pop(f"ln1.{kind}") for kind in ("weight", "bias")}
    backbone.model.load_state_dict(convert(weights, backbone.model), strict=True)
    names = sorted({k.split(".")[0] for k in norms}, key=lambda k: (k == "ln1", k))
    backbone.out_norms.load_state_dict(
        {f"{names.index(k.split('.')[0])}.{k.split('.', 1)[1]}": v for k, v in norms.items()}, strict=True
    )
    with torch.no_grad():
        maps = backbone(torch.from_numpy(reference_input(record["input_shape"], record["seed"])))
    for ours, expected in zip(maps, recorded, strict=True):
        assert compare_summary(expected["name"], ours, expected).ok
