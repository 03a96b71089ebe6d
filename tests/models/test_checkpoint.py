"""Reading authors' files: what is beside the weights does nothing, what is no checkpoint is refused in a sentence."""

import argparse
import os
import sys
import types

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.checkpoints import check_checkpoint_file, identify, unwrap
from visionssm.models import CheckpointError, inert_stand_ins


@pytest.fixture
def yacs(monkeypatch):
    """A module named like yacs with a dict class pickled as its CfgNode is: with items and with attributes."""
    module = types.ModuleType("yacs.config")

    class CfgNode(dict):
        def __init__(self, *args):
            super().__init__(*args)
            self.__dict__["__immutable__"] = False

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return module


def make(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("test_vmamba", **kwargs).eval()


def load(path, **kwargs):
    return timm.create_model("test_vmamba", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs)


def test_authors_file_with_config_objects(tmp_path, yacs, monkeypatch):
    model = make()
    config = yacs.CfgNode({"MODEL": yacs.CfgNode({"DEPTHS": [2, 2, 8, 2], "NAME": "vssm"}), "AMP": True})
    path = tmp_path / "authors.pth"
    torch.save({"model": model.state_dict(), "config": config, "args": argparse.Namespace(lr=1e-3), "epoch": 264}, path)
    monkeypatch.delitem(sys.modules, "yacs.config")  # a user has no yacs
    monkeypatch.delitem(sys.modules, "yacs")
    loaded = load(path)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    with inert_stand_ins():
        content = torch.load(path, weights_only=True)
    assert type(content["config"]).__module__ == "collections"


def test_logs_of_numpy_arrays_are_read_over(tmp_path):
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "log.pth"
    torch.save({"state_dict": make().state_dict(), "log": numpy.arange(4.0), "best": numpy.float64(82.6)}, path)
    load(path)


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch):
    path = tmp_path / "evil.pth"
    torch.save({"model": make().state_dict(), "extra": Evil()}, path)
    called = []
    monkeypatch.setattr(os, "system", called.append)
    with pytest.raises(CheckpointError, match="not on the list of harmless ones: (posix|nt).system"):
        load(path)
    assert not called


def test_truncated_file(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(make().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load(path)


def test_truncated_safetensors(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file(make().state_dict(), path)
    check_checkpoint_file(path)
    load(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="truncated"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>", b"version https://git-lfs.github.com/spec/v1"])
def test_no_checkpoint(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load(path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint file at"):
        load(tmp_path / "nowhere.pth")


def test_file_without_tensors(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"epoch": 3}}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load(path)


def test_other_classes_and_channels_adapt(tmp_path):
    path = tmp_path / "weights.pth"
    model = make()
    torch.save({"model": model.state_dict()}, path)
    adapted = load(path, num_classes=7, in_chans=1)
    assert adapted.head.fc.weight.shape[0] == 7 and adapted.stem.conv1.weight.shape[1] == 1
    assert torch.equal(adapted.stages[1].blocks[0].mixer.in_proj.weight, model.stages[1].blocks[0].mixer.in_proj.weight)
    features = load(path, features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(features(x)[-1], model.forward_intermediates(x, intermediates_only=True)[-1])


def test_weights_of_a_model_with_another_head_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(make(num_classes=5).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"head.fc.weight: file \(5, 64\), model \(1000, 64\)"):
        load(path)


def test_unwrap_prefers_averaged_weights():
    one, two = {"a.weight": torch.ones(1)}, {"a.weight": torch.zeros(1)}
    assert unwrap({"model": one, "model_ema": two}) == two
    assert unwrap({"state_dict": {"model": one}}) == one
    assert unwrap({"module._orig_mod.a.weight": one["a.weight"]}).keys() == {"a.weight"}


def test_identify_by_names():
    assert identify({"layers.0.mixer.A_b_log": 0}) == "Vim"
    assert identify({"layers.0.mixer.A_log_3": 0}) == "LocalVim"
    assert identify({"backbone.layers.3.mamba.direction_Bs": 0}) == "PlainMamba"
    assert identify({"block1.0.attn.mamba_g1.A_logs": 0}) == "GroupMamba"
    assert identify({"conv1.weight": 0}) is None
