"""Authors' detectors and segmenters: files made in their layout load and reproduce their recorded maps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine", reason="the OpenMMLab stack is not installed")

import torch  # noqa: E402
from mmengine.config import Config  # noqa: E402
from mmengine.logging import HistoryBuffer  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from torch import nn  # noqa: E402

from tests.parity import DATA, compare_summary, fill_state_dict, reference_input  # noqa: E402
from tests.parity import localmamba as localmamba_parity  # noqa: E402
from tests.parity import plainmamba as plainmamba_parity  # noqa: E402
from tests.parity import vmamba as vmamba_parity  # noqa: E402
from visionssm.checkpoints import CheckpointError, read  # noqa: E402
from visionssm.openmmlab import VisionSSMBackbone  # noqa: E402
from visionssm.openmmlab.conversion import convert  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"


class Segmenter(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Conv2d(backbone.out_channels[-1], 3, 1)


def _vmamba(record):
    return dict(name="test_vmamba", model_args=vmamba_parity.model_args(record["config"]))


def _localvmamba(record):
    return dict(name="test_localvmamba", model_args=localmamba_parity.localvmamba_args(record["config"]))


def _localvim(record):
    args = dict(localmamba_parity.localvim_args(record["config"]), d_state=16)
    return dict(name="test_localvim", model_args=args, feature_stream=False)


def _plainmamba(record):
    return dict(
        name="test_plainmamba",
        model_args=plainmamba_parity.model_args(record["config"]),
        out_norm=("layernorm", "model"),
        out_norm_eps=1e-6,
    )


CASES = [
    ("goldens/vmamba_custom_ln2d_r2-backbone", _vmamba),
    ("goldens/vmamba_custom_v0-backbone", _vmamba),
    ("ops/localmamba-backbone-local_vssm", _localvmamba),
    ("ops/localmamba-backbone-local_vim", _localvim),
    ("ops/plainmamba-backbone", _plainmamba),
]


def _case(path, arguments):
    """The record, our model, and a state dict in the authors' layout."""
    record = json.loads((DATA / f"{path}.json").read_text())
    outputs = record.get("outputs") or record["stages"]
    backbone = VisionSSMBackbone(**arguments(record), out_indices=record.get("out_indices", range(len(outputs))))
    model = Segmenter(backbone).eval()
    theirs = {f"backbone.{k}": v for k, v in fill_state_dict(record["keys"], record).items()}
    theirs |= {f"decode_head.{k}": v.clone() + 1 for k, v in model.decode_head.state_dict().items()}
    return record, outputs, model, theirs


@pytest.mark.parametrize("path, arguments", CASES)
def test_converted_weights_reproduce_the_recorded_maps(path, arguments, tmp_path):
    record, outputs, model, theirs = _case(path, arguments)
    torch.save({"meta": {"epoch": 12}, "state_dict": theirs, "optimizer": {}}, tmp_path / "epoch_12.pth")
    model.load_state_dict(convert(read(tmp_path / "epoch_12.pth").weights, model), strict=True)
    assert torch.equal(model.decode_head.weight, theirs["decode_head.weight"])
    with torch.no_grad():
        maps = model.backbone(torch.from_numpy(reference_input(record["input_shape"], record["seed"])))
    for ours, expected in zip(maps, outputs, strict=True):
        assert compare_summary(expected["name"], ours, expected).ok


def test_what_does_not_fit_is_refused():
    _, _, model, theirs = _case(*CASES[0])
    with pytest.raises(CheckpointError, match="(?s)in the file but not in the model.*neck.weight"):
        convert(theirs | {"neck.weight": torch.zeros(1)}, model)
    with pytest.raises(CheckpointError, match="(?s)missing from the file.*out_norms.3.weight"):
        convert({k: v for k, v in theirs.items() if "outnorm3" not in k}, model)
    with pytest.raises(CheckpointError, match="decode_head.weight"):
        convert(theirs | {"decode_head.weight": torch.zeros(1)}, model)
    with pytest.raises(CheckpointError, match="none of its names begin with 'backbone.'"):
        convert({"layers.0.weight": torch.zeros(1)}, model)
    with pytest.raises(CheckpointError, match="ViT-Adapter"):
        convert(theirs | {"backbone.spm.stem.0.weight": torch.zeros(1)}, model)
    with pytest.raises(CheckpointError, match="not one of"):
        convert(theirs | {"backbone.layers.9.weight": torch.zeros(1)}, model)


def detector(backbone):
    """The small Mask R-CNN of the digits on another backbone."""
    pytest.importorskip("mmdet.models", reason="mmdet or mmcv is not installed")
    cfg = Config.fromfile(CONFIGS / "detection/digits/mask_rcnn_test_vmamba_digits.py")
    cfg.model.backbone = dict(type="VisionSSMBackbone", **backbone)
    cfg.model.neck.in_channels = list(VisionSSMBackbone(**backbone).out_channels)
    return cfg


def segmenter(backbone):
    """The small UPerNet of the digits on another backbone."""
    pytest.importorskip("mmseg.models", reason="mmseg or mmcv is not installed")
    cfg = Config.fromfile(CONFIGS / "segmentation/digits/upernet_test_vmamba_digits.py")
    cfg.model.backbone = dict(type="VisionSSMBackbone", **backbone)
    channels = list(VisionSSMBackbone(**backbone).out_channels)
    cfg.model.decode_head.update(in_channels=channels, in_index=list(range(len(channels))))
    cfg.model.auxiliary_head.update(in_channels=channels[1], in_index=1)
    return cfg


@pytest.mark.parametrize("make_config, path, arguments", [(detector, *CASES[0]), (segmenter, *CASES[4])])
def test_a_whole_file_goes_through_the_command(make_config, path, arguments, tmp_path):
    record = json.loads((DATA / f"{path}.json").read_text())
    outputs = record.get("outputs") or record["stages"]
    cfg = make_config(dict(arguments(record), out_indices=list(record.get("out_indices", range(len(outputs))))))
    config = tmp_path / "config.py"
    cfg.dump(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    original = MODELS.build(cfg.model).eval()
    theirs = {k: v for k, v in original.state_dict().items() if not k.startswith("backbone.")}
    theirs |= {f"backbone.{k}": v for k, v in fill_state_dict(record["keys"], record).items()}
    # mmengine pickles its log, objects of several classes, beside the weights
    log = {"log_scalars": {"train/loss": HistoryBuffer([1.0, 0.5], [1, 1])}, "resumed_keys": {"train/loss": True}}
    torch.save(
        {
            "meta": {"epoch": 12, "cfg": cfg.pretty_text},
            "state_dict": theirs,
            "message_hub": log,
            "optimizer": {"state": {}, "param_groups": []},
        },
        tmp_path / "epoch_12.pth",
    )

    command = [
        sys.executable,
        str(ROOT / "tools/convert.py"),
        "--config",
        str(config),
        "--checkpoint",
        str(tmp_path / "epoch_12.pth"),
        "--output",
        str(tmp_path / "converted.pth"),
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    )
    assert result.returncode == 0, result.stderr

    torch.manual_seed(1)
    converted = MODELS.build(cfg.model).eval()
    converted.load_state_dict(torch.load(tmp_path / "converted.pth", weights_only=True)["state_dict"], strict=True)
    x = torch.from_numpy(reference_input(record["input_shape"], record["seed"]))
    with torch.no_grad():
        maps = converted.backbone(x)
        for ours, expected in zip(maps, outputs, strict=True):
            assert compare_summary(expected["name"], ours, expected).ok
        # the heads are those of the file
        original.backbone = converted.backbone
        for ours, expected in zip(_predict(converted, x), _predict(original, x), strict=True):
            assert ours.numel() and torch.equal(ours, expected)


def _predict(model, x):
    """Boxes with scores and masks, or the logits of every pixel."""
    if not hasattr(model, "roi_head"):
        return [model(x)]
    size = x.shape[2:]
    sample = pytest.importorskip("mmdet.structures").DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    )
    model.test_cfg.rcnn.score_thr = 0.0
    found = model(x, [sample], mode="predict")[0].pred_instances
    return [found.bboxes, found.scores, found.masks]


def _published():
    """Configs whose authors publish the trained model, with the recorded names of its backbone's weights."""
    for folder in ("detection/vmamba", "segmentation/vmamba", "segmentation/plainmamba"):
        for path in sorted((CONFIGS / folder).glob("*.py")):
            yield pytest.param(path, id=f"{folder}/{path.stem}")


@pytest.mark.parametrize("path", _published())
def test_names_and_shapes_of_published_files_fit(path):
    cfg = Config.fromfile(path)
    pytest.importorskip(f"{cfg.default_scope}.models", reason="mmdet, mmseg or mmcv is not installed")
    cfg.model.backbone.pretrained = False
    init_default_scope(cfg.default_scope)
    keys = json.loads((DATA / f"keys/{cfg.model.backbone.name}.json").read_text())["keys"]
    plain = "plainmamba" in cfg.model.backbone.name
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
        theirs = {
            f"backbone.{name.removeprefix('backbone.')}": torch.empty(shape)
            for name, shape in keys
            if not name.startswith(("classifier.", "head."))
        }
        channels = model.backbone.out_channels
        for i, width in enumerate(channels[:-1] if plain else channels):
            for kind in ("weight", "bias"):
                theirs[f"backbone.{'norm_layer' if plain else 'outnorm'}{i}.{kind}"] = torch.empty(width)
    theirs |= {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    model.load_state_dict(convert(theirs, model), strict=True, assign=True)
