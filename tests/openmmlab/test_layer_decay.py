"""Layer decay and the check of channels; needs mmengine only."""

import pytest

pytest.importorskip("mmengine", reason="the OpenMMLab stack is not installed")

import torch  # noqa: E402
from mmengine.model import BaseModule  # noqa: E402
from mmengine.optim import build_optim_wrapper  # noqa: E402
from torch import nn  # noqa: E402

from visionssm.openmmlab import SimpleFPN, VisionSSMBackbone, check_channels, describe_groups  # noqa: E402


class Detector(BaseModule):
    def __init__(self, backbone, neck=None):
        super().__init__()
        self.backbone = backbone
        self.neck = neck or nn.Conv2d(1, 1, 1)


def _optimizer(model, **paramwise):
    cfg = dict(
        type="OptimWrapper",
        optimizer=dict(type="AdamW", lr=1.0, weight_decay=0.1),
        constructor="LayerDecayOptimWrapperConstructor",
        paramwise_cfg=paramwise,
    )
    return build_optim_wrapper(model, cfg).optimizer


def test_every_layer_has_its_rate():
    model = Detector(VisionSSMBackbone("test_vim"))
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for group in _optimizer(model, layer_decay=0.5).param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = group["lr"], group["weight_decay"]
    assert set(found) == set(names.values())
    # four blocks: stem 0, blocks 1 to 4, norms, neck and head 5
    assert found["backbone.model.patch_embed.proj.weight"] == (0.5**5, 0.1)
    assert found["backbone.model.pos_embed"] == (0.5**5, 0.0)
    assert found["backbone.model.blocks.0.mixer.in_proj.weight"] == (0.5**4, 0.1)
    assert found["backbone.model.blocks.3.mixer.in_proj.weight"] == (0.5, 0.1)
    assert found["backbone.model.blocks.3.mixer.ssm.D"] == (0.5, 0.0)  # named by no_weight_decay
    assert found["backbone.out_norms.0.weight"] == (1.0, 0.0)
    assert found["neck.weight"] == (1.0, 0.1)
    assert found["neck.bias"] == (1.0, 0.0)


def test_stages_and_downsampling_count_as_the_model_says():
    backbone = VisionSSMBackbone("test_vmamba", frozen_stages=1)
    model = Detector(backbone)
    optimizer = _optimizer(model, layer_decay=0.9)
    assert backbone.layer_id("model.stem.conv1.weight") == 0
    assert backbone.layer_id("model.stages.3.blocks.0.mixer.in_proj.weight") == backbone.num_layers - 1 == 5
    assert not {id(p) for p in backbone.model.stem.parameters()} & {
        id(p) for group in optimizer.param_groups for p in group["params"]
    }
    table = describe_groups(optimizer)
    assert len(table.splitlines()) == 1 + len(optimizer.param_groups)
    assert "0.9" in table


@pytest.mark.parametrize(
    "paramwise, message",
    [
        (dict(layer_decay=0.0), "above 0"),
        (dict(decay_rate=0.9), "layer_decay"),
    ],
)
def test_bad_options_are_refused(paramwise, message):
    with pytest.raises(ValueError, match=message):
        _optimizer(Detector(VisionSSMBackbone("test_vmamba")), **paramwise)


def test_another_backbone_is_refused():
    with pytest.raises(ValueError, match="VisionSSMBackbone"):
        _optimizer(Detector(nn.Conv2d(3, 3, 1)), layer_decay=0.9)


def test_wrong_channels_are_named():
    backbone = VisionSSMBackbone("test_vim")
    check_channels(Detector(backbone, SimpleFPN(48, 8)))
    with pytest.raises(ValueError, match="write in_channels=48"):
        check_channels(Detector(backbone, SimpleFPN(64, 8)))
    fpn = nn.Identity()
    fpn.in_channels = [96, 192]
    with pytest.raises(ValueError, match=r"write in_channels=\[20, 32, 48, 64\]"):
        check_channels(Detector(VisionSSMBackbone("test_vmamba"), fpn))
    check_channels(Detector(torch.nn.Conv2d(3, 3, 1)))
