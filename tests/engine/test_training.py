"""Short runs: what they write, how they continue, when they stop."""

import csv
import json
import re
import signal
import sys
import tarfile
from dataclasses import fields
from fnmatch import fnmatch

import pytest
import timm
import torch
import yaml
from conftest import assert_same_weights, load
from PIL import Image
from torch.overrides import TorchFunctionMode

from visionssm.commands import _training as train_module
from visionssm.commands._arguments import parse_args
from visionssm.commands._options import OptimOptions, TrainOptions, cut
from visionssm.commands.compare import main as compare
from visionssm.engine.inference.classifier import load_classifier
from visionssm.engine.training import stopping
from visionssm.engine.training.stopping import StopRequest

EVERYTHING = dict(
    mixup=0.4,
    cutmix=0.5,
    reprob=0.3,
    drop_path=0.2,
    drop=0.1,
    aa="rand-m5-mstd0.5",
    model_ema=True,
    clip_grad=1.0,
    sched_on_updates=True,
    grad_accum_steps=2,
    aug_repeats=2,
    mixup_off_epoch=1,
)


class StopAfter(StopRequest):
    """Receives SIGTERM after so many looks."""

    def __init__(self, looks):
        super().__init__()
        self.looks = looks

    def agreed(self, world, device):
        self.looks -= 1
        if self.looks < 0:
            self.signal_number = signal.SIGTERM
        return super().agreed(world, device)


def test_files_of_a_run(run):
    assert run(model_ema=True, log_tensorboard=True) == 0
    folder = run.folder / "run"
    assert {path.name for path in folder.iterdir()} == {
        "args.yaml",
        "checkpoint-0.pth.tar",
        "checkpoint-1.pth.tar",
        "curve.png",
        "last.pth.tar",
        "model_best.pth.tar",
        "summary.csv",
        "train.log",
        "tensorboard",
    }
    checkpoint = load(folder / "last.pth.tar")
    assert {"state_dict", "state_dict_ema", "arch", "epoch", "metric", "optimizer", "args", "version"} <= set(
        checkpoint
    )
    assert (checkpoint["arch"], checkpoint["epoch"], checkpoint["version"]) == ("test_vmamba", 1, 2)
    rows = list(csv.DictReader((folder / "summary.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert list(rows[0])[:5] == ["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5"]
    assert float(rows[1]["eval_ema_top1"]) == pytest.approx(checkpoint["metric"])
    assert yaml.safe_load((folder / "args.yaml").read_text())["model"] == "test_vmamba"
    with Image.open(folder / "curve.png") as image:
        assert image.width > 500


def test_epochs_have_one_number(run):
    """In the names of files, the table, what is printed and what compare says: counted from 0."""
    assert run() == 0
    folder = run.folder / "run"
    told = (folder / "train.log").read_text()
    number = int(re.search(r"best top1 \S+ in epoch (\d+) \(", told)[1])
    best = load(folder / "model_best.pth.tar")
    assert load(folder / f"checkpoint-{number}.pth.tar")["metric"] == best["metric"] and best["epoch"] == number
    rows = list(csv.DictReader((folder / "summary.csv").open()))
    assert float(rows[number]["eval_top1"]) == pytest.approx(best["metric"]) and rows[number]["epoch"] == str(number)
    assert re.findall(r"epoch (\d/\d) done", told) == ["0/1", "1/1"]
    assert compare([str(folder), "--results-file", str(folder / "compared.json")]) == 0
    assert json.loads((folder / "compared.json").read_text())[0]["in_epoch"] == number


def test_tar_files_train_like_the_folder(run, image_folder, tmp_path):
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as archive:
            archive.add(image_folder / split, arcname=split)
    assert run("folder", epochs=1) == 0
    assert run("tar", epochs=1, data_dir=tmp_path, workers=1) == 0
    assert_same_weights(run.folder / "folder" / "last.pth.tar", run.folder / "tar" / "last.pth.tar")


def test_args_of_a_run_are_a_recipe(run, tmp_path):
    assert run(epochs=1) == 0
    args = parse_args(["-c", str(run.folder / "run" / "args.yaml")])
    assert (args.model, args.lr, args.epochs) == ("test_vmamba", 2e-3, 1)


def test_training_learns(run):
    assert run(epochs=10, scale=[0.8, 1.0], smoothing=0.0, color_jitter=0.0) == 0
    rows = list(csv.DictReader((run.folder / "run" / "summary.csv").open()))
    assert float(rows[-1]["train_loss"]) < 0.8 * float(rows[0]["train_loss"])


@pytest.mark.parametrize("looks", [1, 2, 4, 5], ids=["mid-epoch", "end-of-epoch", "evaluation", "second-epoch"])
def test_interrupted_and_resumed_equals_uninterrupted(run, monkeypatch, looks):
    """Bit for bit, with every source of randomness on and another number of loader workers."""
    options = EVERYTHING | {"epochs": 2}
    assert run("whole", **options) == 0
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "StopRequest", lambda: StopAfter(looks))
        assert run("cut", **options, workers=2) == 128 + signal.SIGTERM
    assert run("cut", **options, resume="auto", workers=1) == 0
    assert_same_weights(run.folder / "whole" / "last.pth.tar", run.folder / "cut" / "last.pth.tar")
    assert (run.folder / "whole" / "summary.csv").read_text() == (run.folder / "cut" / "summary.csv").read_text()


def test_resuming_a_finished_run_changes_nothing(run):
    assert run() == 0
    before = (run.folder / "run" / "last.pth.tar").read_bytes()
    assert run(resume="auto") == 0
    assert (run.folder / "run" / "last.pth.tar").read_bytes() == before


def test_a_kill_after_last_and_before_its_copies_is_repaired(run):
    assert run(epochs=3, lr=4e-3, checkpoint_hist=3) == 0
    folder = run.folder / "run"
    best = load(folder / "model_best.pth.tar")
    (folder / "checkpoint-2.pth.tar").unlink()
    if best["epoch"] == 2:
        (folder / "model_best.pth.tar").unlink()
    assert run(epochs=3, lr=4e-3, checkpoint_hist=3, resume="auto") == 0
    assert load(folder / "checkpoint-2.pth.tar")["epoch"] == 2
    assert load(folder / "model_best.pth.tar")["metric"] == best["metric"]


def test_truncated_last_checkpoint_falls_back(run, capsys):
    assert run("whole") == 0
    assert run("cut") == 0
    folder = run.folder / "cut"
    for name in ("last", "checkpoint-1"):
        path = folder / f"{name}.pth.tar"
        if path.exists():
            content = path.read_bytes()[:-2000]
            path.unlink()  # the two may be one file with two names
            path.write_bytes(content)
    assert run("cut", resume="auto") == 0
    assert "last.pth.tar is damaged or incomplete" in capsys.readouterr().out
    assert_same_weights(run.folder / "whole" / "last.pth.tar", folder / "last.pth.tar")


def test_mid_epoch_checkpoint_refuses_other_batches(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "StopRequest", lambda: StopAfter(1))
        assert run() == 128 + signal.SIGTERM
    assert run(resume="auto", batch_size=6) == 2
    assert "inside an epoch with batch_size 4, found 6" in capsys.readouterr().err


def test_not_finite_stops_and_names_step_and_group(run, capsys):
    assert run("good", epochs=1) == 0
    assert run("bad", head_init_scale=float("nan"), max_nonfinite=3) == 2
    error = capsys.readouterr().err
    assert "3 update(s) in a row" in error and "step 3 of 6" in error
    assert "parameter group number" in error and "in it head.fc." in error
    assert "weights are not finite either" in error
    assert not list((run.folder / "bad").glob("*.pth.tar"))


def test_not_finite_stores_the_weights_of_the_last_finite_update(run, monkeypatch, capsys):
    original = train_module.Trainer._backward
    calls = []

    def poisoned(self, images, labels, in_update):
        calls.append(1)
        return original(self, images * (float("inf") if len(calls) in (3, 4) else 1.0), labels, in_update)

    monkeypatch.setattr(train_module.Trainer, "_backward", poisoned)
    assert run("whole") == 0
    calls.clear()
    assert run("cut", max_nonfinite=2) == 2
    error = capsys.readouterr().err
    assert "epoch 0, step 4 of 6" in error and "--resume auto" in error
    (path,) = (run.folder / "cut").glob("recovery-0-4.pth.tar")
    assert all(value.isfinite().all() for value in load(path)["state_dict"].values())
    assert run("cut", max_nonfinite=2, resume="auto") == 0
    assert_same_weights(run.folder / "whole" / "last.pth.tar", run.folder / "cut" / "last.pth.tar")


def test_one_update_that_is_not_finite_is_skipped(run, monkeypatch, capsys):
    original = train_module.Trainer._backward
    calls = []

    def poisoned(self, images, labels, in_update):
        calls.append(1)
        return original(self, images * (float("inf") if len(calls) == 2 else 1.0), labels, in_update)

    monkeypatch.setattr(train_module.Trainer, "_backward", poisoned)
    assert run(epochs=1) == 0
    assert "1 updates skipped so far" in capsys.readouterr().out
    assert all(value.isfinite().all() for value in load(run.folder / "run" / "last.pth.tar")["state_dict"].values())


def test_initial_checkpoint_and_timms_own_reader(run, tmp_path):
    from timm.models import load_checkpoint

    assert run(epochs=1) == 0
    path = run.folder / "run" / "last.pth.tar"
    model = timm.create_model("test_vmamba", num_classes=3)
    load_checkpoint(model, str(path))
    assert torch.equal(model.state_dict()["head.fc.weight"], load(path)["state_dict"]["head.fc.weight"])
    assert run("second", epochs=1, initial_checkpoint=path, lr=0.0) == 0
    second = load(run.folder / "second" / "last.pth.tar")["state_dict"]
    assert torch.equal(second["head.fc.weight"], load(path)["state_dict"]["head.fc.weight"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision(run, dtype):
    assert run(epochs=1, amp=True, amp_dtype=dtype) == 0


def test_layer_decay_groups():
    args = parse_args(["--opt", "adamw", "--layer-decay", "0.5", "--weight-decay", "0.1"])
    model = timm.create_model("test_vmamba", num_classes=3)
    optimizer = train_module.create_optimizer(model, cut(OptimOptions, args), 1e-3)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            scales.setdefault(group["lr_scale"], []).append(names[id(p)])
            spared = p.ndim < 2 or any(fnmatch(names[id(p)], pattern) for pattern in model.no_weight_decay())
            assert group["weight_decay"] == (0 if spared else 0.1), names[id(p)]
    assert set(scales) == {0.5**depth for depth in range(len(scales))}
    assert all(name.startswith("head") or name.startswith("norm") for name in scales[1.0])
    assert all(name.startswith("stem") for name in scales[min(scales)])


@pytest.mark.parametrize("kind", ["logit", "feature"])
def test_distillation(run, monkeypatch, kind):
    """The teacher is built with its initial weights here, since published ones need the network."""
    import timm.task.distillation as distillation

    create = distillation.create_model
    monkeypatch.setattr(distillation, "create_model", lambda *a, **k: create(*a, **(k | {"pretrained": False})))
    assert (
        run(
            epochs=1, kd_model_name="test_resnet", kd_distill_type=kind, kd_loss_type="kl" if kind == "logit" else "mse"
        )
        == 0
    )
    assert (run.folder / "run" / "last.pth.tar").exists()


def test_token_distillation_needs_a_model_with_such_a_token(run, monkeypatch, capsys):
    import timm.task.distillation as distillation

    create = distillation.create_model
    monkeypatch.setattr(distillation, "create_model", lambda *a, **k: create(*a, **(k | {"pretrained": False})))
    assert run(kd_model_name="test_resnet", kd_distill_type="token") == 2
    assert "distillation from 'test_resnet' cannot be set up" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        {"channels_last": True, "fast_norm": True, "grad_checkpointing": True},
        {"torchcompile": "eager"},
        {"clip_grad": 0.02, "clip_mode": "agc", "opt": "lamb"},
    ],
    ids=["memory", "compiled", "agc"],
)
def test_ways_to_run(run, options):
    """Memory formats, recomputation and compilation give the losses of a plain run; clipping and optimizer do not."""
    assert run("plain", epochs=1) == 0
    assert run("other", epochs=1, **options) == 0
    plain, other = (
        float(next(csv.DictReader((run.folder / name / "summary.csv").open()))["train_loss"])
        for name in ("plain", "other")
    )
    assert (plain == pytest.approx(other, rel=1e-4)) == ("opt" not in options)


def test_plateau_schedule_remembers_after_resuming(run, monkeypatch):
    options = dict(epochs=4, sched="plateau", patience_epochs=0, decay_rate=0.5, lr=1e-4)
    assert run("whole", **options) == 0
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "StopRequest", lambda: StopAfter(16))  # inside the third epoch
        assert run("cut", **options) == 128 + signal.SIGTERM
    assert run("cut", **options, resume="auto") == 0
    rows = (run.folder / "whole" / "summary.csv").read_text()
    assert rows == (run.folder / "cut" / "summary.csv").read_text()
    assert len({row["lr"] for row in csv.DictReader(rows.splitlines())}) > 1


def test_wandb_is_told_what_the_summary_holds(run, monkeypatch):
    """Through a stand-in for the package, which needs an account and the network."""
    from types import SimpleNamespace

    from visionssm.engine.reports import progress as reporting

    logged, begun = [], []

    def init(**options):
        begun.append(options)
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, __spec__=None))
    monkeypatch.setattr(reporting, "require_package", lambda name, flag: None)
    with monkeypatch.context() as patch:
        patch.setattr(stopping, "StopRequest", lambda: StopAfter(7))  # inside the second epoch
        assert run(log_wandb=True) == 128 + signal.SIGTERM
    assert run(log_wandb=True, resume="auto") == 0
    assert run("other", log_wandb=True, resume=run.folder / "run" / "checkpoint-0.pth.tar", epochs=1) == 0
    first, requeued, other = (options["id"] for options in begun)
    assert first == requeued != other and all(options["resume"] == "allow" for options in begun)
    rows = list(csv.DictReader((run.folder / "run" / "summary.csv").open()))
    assert [step for step, _ in logged] == [0, 1]
    assert [values["train_loss"] for _, values in logged] == [float(row["train_loss"]) for row in rows]


@pytest.mark.parametrize("options", [{"in_chans": 1, "img_size": 28}, {"input_size": [1, 28, 28], "img_size": None}])
def test_mean_and_deviation_follow_the_channels(run, options):
    """Of a model with three of each, whose one-channel kin takes their average; evaluation knows it too."""
    assert run(epochs=1, **options) == 0
    path = run.folder / "run" / "last.pth.tar"
    config = load(path)["task_state"]["run"]["facts"]["data_config"]
    three = timm.get_pretrained_cfg("test_vmamba")
    assert config["input_size"] == [1, 28, 28]
    assert config["mean"] == pytest.approx([sum(three.mean) / 3]) and config["std"] == pytest.approx(
        [sum(three.std) / 3]
    )
    assert load_classifier(None, path).data_config["mean"] == config["mean"]
    resized = load_classifier(None, path, data_options={"img_size": 56}).data_config
    assert resized["input_size"] == (1, 56, 56) and len(resized["std"]) == 1


@pytest.mark.parametrize(
    "options, found",
    [
        ({"in_chans": 1, "mean": [0.5, 0.5, 0.5]}, "--mean holds 3 values, expected 1 or 1"),
        ({"in_chans": 1, "input_size": [3, 28, 28]}, "takes 1 channel(s), but --input-size 3 28 28 has 3"),
    ],
)
def test_channels_that_contradict_each_other(run, capsys, options, found):
    assert run(**options) == 2
    assert found in capsys.readouterr().err


def test_every_argument_belongs_to_a_group():
    groups = [{field.name for field in fields(group.type)} for group in fields(TrainOptions)]
    assert set().union(*groups) == set(vars(parse_args([]))) - {"config"}


def test_loss_is_read_from_the_device_for_log_lines_only(run, monkeypatch):
    """Each reading waits for the device."""
    original, losses, read = train_module.Trainer._backward, [], []

    def remembered(self, *args):
        losses.append(original(self, *args))
        return losses[-1]

    class Readings(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.item, torch.Tensor.__float__):
                read.extend(True for loss in losses if loss is args[0])
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(train_module.Trainer, "_backward", remembered)
    with Readings():
        assert run(epochs=1, grad_accum_steps=2, log_interval=4) == 0
    assert (len(losses), len(read)) == (6, 2)
