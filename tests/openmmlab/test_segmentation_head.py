"""A decoder of ours as a head of mmseg: losses reach every parameter, windows are predicted, mistakes are named."""

import pytest
import torch

pytest.importorskip("mmseg.models", reason="mmseg or mmcv is not installed")

from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

import visionssm.openmmlab
import visionssm.openmmlab.segmentation_head  # noqa: F401

HEAD = dict(
    type="VisionSSMHead",
    decoder="msvm_unet",
    decoder_args=dict(depths=(1, 1, 1)),
    in_channels=[20, 32, 48, 64],
    in_index=[0, 1, 2, 3],
    channels=20,
    num_classes=4,
)


def segmentor():
    register_all_modules(init_default_scope=True)
    backbone = dict(type="VisionSSMBackbone", name="test_vmamba", out_norm=None)
    return MODELS.build(
        dict(
            type="EncoderDecoder",
            backbone=backbone,
            decode_head=HEAD,
            train_cfg={},
            test_cfg=ConfigDict(mode="slide", crop_size=(64, 64), stride=(32, 32)),
        )
    )


def test_trains_and_predicts_in_mmseg():
    torch.manual_seed(0)
    model = segmentor()
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 4, (1, 64, 64))))
    sample.set_metainfo(dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), padding_size=[0] * 4))
    losses = model.loss(torch.randn(2, 3, 64, 64), [sample, sample])
    losses["decode.loss_ce"].backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.eval()
    with torch.no_grad():
        assert model.decode_head(model.extract_feat(torch.randn(1, 3, 61, 47))).shape == (1, 4, 64, 48)
        meta = dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96), padding_size=[0] * 4)
        assert model.inference(torch.randn(1, 3, 64, 96), [meta]).shape == (1, 4, 64, 96)


@pytest.mark.parametrize(
    ("wrong", "message"), [(dict(channels=32), "finest map"), (dict(decoder="msvmunet"), "did you mean 'msvm_unet'")]
)
def test_names_what_does_not_fit(wrong, message):
    init_default_scope("mmseg")  # other tests leave mmdet's
    with pytest.raises(ValueError, match=message):
        MODELS.build({**HEAD, **wrong})
