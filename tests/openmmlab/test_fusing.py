"""Libraries that fuse or replace batch norms leave what a model computes unchanged."""

import copy
from typing import cast

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import visionssm

pytest.importorskip("mmcv")
from mmcv.cnn import fuse_conv_bn
from mmengine.model import revert_sync_batchnorm


def with_statistics(model: nn.Module) -> nn.Module:
    """The model in evaluation, with batch norms that do something."""
    for norm in (m for m in model.modules() if isinstance(m, _BatchNorm)):
        nn.init.normal_(cast(torch.Tensor, norm.running_mean))
        nn.init.normal_(norm.bias)
        nn.init.uniform_(cast(torch.Tensor, norm.running_var), 0.5, 1.5)
        nn.init.uniform_(norm.weight)
    return model.eval()


def models():
    for name in visionssm.list_models("test_*"):
        if any(isinstance(m, _BatchNorm) for m in timm.create_model(name, device="meta").modules()):
            yield name


@pytest.mark.parametrize("name", list(models()))
@torch.no_grad()
def test_batch_norms_may_be_fused_and_replaced(name):
    torch.manual_seed(0)
    model = with_statistics(timm.create_model(name, num_classes=3))
    x = torch.randn(1, *model.default_cfg["input_size"])
    expected = model(x)
    fused = fuse_conv_bn(copy.deepcopy(model))
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules()) < norms
    torch.testing.assert_close(fused(x), expected, atol=1e-4, rtol=1e-4)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    torch.testing.assert_close(synchronised(x), expected)
    torch.testing.assert_close(revert_sync_batchnorm(synchronised)(x), expected)
