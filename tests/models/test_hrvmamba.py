"""HRVMamba's kinds of blocks and its levels."""

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.models import CheckpointError
from visionssm.models.hrvmamba import HRVMamba

SMALL = dict(dims=(8, 16, 24, 32), stem_dim=8, modules=(1, 1, 1), depth=1, neck_dims=(16, 24, 32, 48), neck_out=64)


def test_the_other_kind_of_blocks_is_named():
    plain, excited = HRVMamba(**SMALL), HRVMamba(**SMALL, excited=True)
    with pytest.raises(CheckpointError, match="with the ending '_se_lpu'"):
        plain.checkpoint_filter_fn(excited.state_dict(), plain)
    with pytest.raises(CheckpointError, match="without the ending '_se_lpu'"):
        excited.checkpoint_filter_fn(plain.state_dict(), excited)
    with pytest.raises(CheckpointError, match="pointwise=True"):
        plain.checkpoint_filter_fn(HRVMamba(**SMALL, pointwise=True).state_dict(), plain)


def test_levels_of_the_neck():
    model = timm.create_model("test_hrvmamba", features_only=True, features="neck").eval()
    with torch.no_grad():
        levels = model(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in levels] == [(16, 16, 24), (24, 8, 12), (32, 4, 6), (64, 2, 3)]


def test_bad_arguments():
    with pytest.raises(ValueError, match="'branches' or 'neck'"):
        HRVMamba(**SMALL, features="stages")
    with pytest.raises(ValueError, match="multiple of 4"):
        HRVMamba(**{**SMALL, "dims": (8, 16, 24, 30)})
