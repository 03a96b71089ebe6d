"""Reading authors' files: what is beside the weights does nothing, what is no checkpoint is refused in a sentence."""

import argparse
import os
import sys
import types

import pytest
import timm
import torch

import visionssm  # noqa: F401
from visionssm.checkpoints import identify, load, read, unwrap
from visionssm.errors import UserError
from visionssm.models import CheckpointError, inert_stand_ins, list_models


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


def make(name="test_vmamba", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def create(path, name="test_vmamba", **kwargs):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)), **kwargs)


def test_authors_file_with_config_objects(tmp_path, yacs, monkeypatch):
    model = make()
    config = yacs.CfgNode({"MODEL": yacs.CfgNode({"DEPTHS": [2, 2, 8, 2], "NAME": "vssm"}), "AMP": True})
    path = tmp_path / "authors.pth"
    torch.save({"model": model.state_dict(), "config": config, "args": argparse.Namespace(lr=1e-3), "epoch": 264}, path)
    monkeypatch.delitem(sys.modules, "yacs.config")  # a user has no yacs
    monkeypatch.delitem(sys.modules, "yacs")
    loaded = create(path)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    with inert_stand_ins():
        content = torch.load(path, weights_only=True)
    assert type(content["config"]).__module__ == "collections"


def test_logs_of_numpy_arrays_are_read_over(tmp_path):
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "log.pth"
    torch.save({"state_dict": make().state_dict(), "log": numpy.arange(4.0), "best": numpy.float64(82.6)}, path)
    create(path)


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_code_in_a_file_is_refused_and_not_run(tmp_path, monkeypatch):
    path = tmp_path / "evil.pth"
    torch.save({"model": make().state_dict(), "extra": Evil()}, path)
    called = []
    monkeypatch.setattr(os, "system", called.append)
    with pytest.raises(CheckpointError, match="not on the list of harmless ones: (posix|nt).system"):
        create(path)
    assert not called


def test_truncated_file(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(make().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        create(path)


def test_truncated_safetensors(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file(make().state_dict(), path)
    create(path)
    whole = path.read_bytes()
    for kept in (0, 500, len(whole) - 1000):  # nothing, in the header, in the data
        path.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=f"damaged or incomplete .{kept} bytes., truncated"):
            create(path)


@pytest.mark.parametrize("content", [b"", b"<html>404 not found</html>", b"version https://git-lfs.github.com/spec/v1"])
def test_no_checkpoint(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        create(path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.pth does not exist"):
        create(tmp_path / "nowhere.pth")


def test_file_without_tensors(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"epoch": 3}}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        create(path)


def test_other_classes_and_channels_adapt(tmp_path):
    path = tmp_path / "weights.pth"
    model = make()
    torch.save({"model": model.state_dict()}, path)
    adapted = create(path, num_classes=7, in_chans=1)
    assert adapted.head.fc.weight.shape[0] == 7 and adapted.stem.conv1.weight.shape[1] == 1
    assert torch.equal(adapted.stages[1].blocks[0].mixer.in_proj.weight, model.stages[1].blocks[0].mixer.in_proj.weight)
    features = create(path, features_only=True).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(features(x)[-1], model.forward_intermediates(x, intermediates_only=True)[-1])


def run_of_ten_classes(tmp_path, name="test_vmamba"):
    model = make(name, num_classes=10)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "run.pth.tar")
    return model.state_dict(), tmp_path / "run.pth.tar"


@pytest.mark.parametrize("name", list_models("test_*"))
def test_a_classifier_that_fits_is_kept(name, tmp_path, caplog):
    weights, path = run_of_ten_classes(tmp_path, name)
    model = create(path, name, num_classes=10)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert model.pretrained_cfg["num_classes"] == 10 and "state_dict" not in model.pretrained_cfg
    assert not caplog.records
    cfg = dict(model.pretrained_cfg, num_classes=1000, file=str(path))
    model = timm.create_model(name, pretrained=True, pretrained_cfg=cfg, num_classes=10)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("classes", [7, 1000])
def test_a_classifier_that_does_not_fit_begins_anew_and_says_so(classes, tmp_path, caplog):
    weights, path = run_of_ten_classes(tmp_path)
    model = create(path, num_classes=classes)
    differing = {k for k, v in model.state_dict().items() if not torch.equal(v, weights[k])}
    assert differing == {"head.fc.weight", "head.fc.bias"}
    (record,) = caplog.records
    assert record.getMessage().endswith(f"classifier is of 10 classes, the model's is of {classes}: it begins anew")


def test_a_file_without_classifier(tmp_path, caplog):
    torch.save(make(num_classes=0).state_dict(), tmp_path / "backbone.pth")
    assert create(tmp_path / "backbone.pth", num_classes=1000).head.fc.weight.shape[0] == 1000
    assert "classifier is missing, the model's is of 1000: it begins anew" in caplog.text
    with pytest.raises(CheckpointError, match="classifier is missing, the model's is of 1000: build"):
        create(tmp_path / "backbone.pth")


def test_nobody_asks_for_the_classifier_of_a_backbone(tmp_path, caplog):
    _, path = run_of_ten_classes(tmp_path)
    assert create(path, num_classes=0).num_classes == 0
    create(path, features_only=True)
    assert not caplog.records


def test_weights_of_a_model_with_another_head_are_refused(tmp_path):
    _, path = run_of_ten_classes(tmp_path)
    for attempt in (lambda: create(path), lambda: load(read(path), make())):
        with pytest.raises(CheckpointError, match=r"head.fc.weight: file \(10, 64\), model \(1000, 64\)"):
            attempt()


def test_a_distilled_classifier_is_whole_or_another(tmp_path):
    weights, path = run_of_ten_classes(tmp_path, "test_groupmamba")
    torch.save({k: v for k, v in weights.items() if "fc_dist" not in k}, path)
    with pytest.raises(CheckpointError, match=r"missing from the file \(2\):\s+head.fc_dist.weight"):
        create(path, "test_groupmamba", num_classes=10)
    assert create(path, "test_groupmamba", num_classes=5).num_classes == 5


def test_other_channels_are_not_loaded_half_way(tmp_path):
    torch.save(make().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"(?s)weights.pth does not fit.*stem.conv1.weight"):
        load(read(tmp_path / "weights.pth"), make(in_chans=1))


def test_unwrap_prefers_averaged_weights():
    one, two = {"a.weight": torch.ones(1)}, {"a.weight": torch.zeros(1)}
    assert unwrap({"model": one, "model_ema": two}) == two
    assert unwrap({"model": one, "model_ema": two}, "raw") == one
    assert unwrap({"model": one, "model_ema": None}) == one
    assert unwrap({"state_dict": {"model": one}}) == one
    assert unwrap({"state_dict": {"model": one, "ema": two}}, "ema") == two
    assert unwrap({"module._orig_mod.a.weight": one["a.weight"]}).keys() == {"a.weight"}
    with pytest.raises(CheckpointError, match="no averaged weights"):
        unwrap({"model": one}, "ema")
    with pytest.raises(CheckpointError, match="averaged weights only"):
        unwrap({"model_ema": one}, "raw")
    with pytest.raises(ValueError, match="auto, raw, ema"):
        unwrap({"model": one}, "best")


def test_options_count_only_in_runs_of_ours(tmp_path):
    weights = make().state_dict()
    args = argparse.Namespace(model="vim_tiny_patch16_224", lr=1e-3)
    content = {"model": weights, "args": args, "arch": "vim", "task_state": None}
    torch.save(content, tmp_path / "authors.pth")
    assert read(tmp_path / "authors.pth").options == {}
    torch.save(content | {"task_state": {"run": {"epoch": 1}}}, tmp_path / "ours.pth")
    assert read(tmp_path / "ours.pth").options["model"] == "vim_tiny_patch16_224"


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_either_format_is_refused(tmp_path, zipped):
    torch.save({"extra": print}, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="not on the list of harmless ones: (builtins.)?print"):
        read(tmp_path / "evil.pth")


def test_damaged_inside(tmp_path):
    torch.save(make().state_dict(), tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "weights.pth").write_bytes((tmp_path / "weights.pth").read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        read(tmp_path / "weights.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        read(tmp_path / "list.pth")


def test_identify_by_names():
    assert identify({"layers.0.mixer.A_b_log": 0}) == "Vim"
    assert identify({"layers.0.mixer.A_log_3": 0}) == "LocalVim"
    assert identify({"backbone.layers.3.mamba.direction_Bs": 0}) == "PlainMamba"
    assert identify({"block1.0.attn.mamba_g1.A_logs": 0}) == "GroupMamba"
    assert identify({"conv1.weight": 0}) is None
