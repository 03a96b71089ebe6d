"""Pre-training without labels, and training that begins with what it gives."""

import csv

import pytest
import torch
from conftest import BASE, load

from visionssm.commands import pretrain


@pytest.fixture
def pre(image_folder, tmp_path):
    def call(output="pre", *more):
        options = BASE | {"data-dir": image_folder, "output": tmp_path / output, "model": "test_vim"}
        argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        argv += [
            "--decoder-width",
            16,
            "--model-kwargs",
            "img_size=32",
            "patch_size=8",
            "--recovery-interval",
            4,
            *more,
        ]
        return pretrain.main([str(value) for value in argv])

    return call


def test_run_goes_on_and_is_fine_tuned(pre, run, tmp_path, capsys):
    """A resumed run equals one that was not interrupted; its file begins a training by one flag."""
    assert pre() == 0
    whole = load(tmp_path / "pre" / "last.pth.tar")
    rows = list(csv.DictReader((tmp_path / "pre" / "summary.csv").open()))
    assert 0.5 < float(rows[-1]["eval_loss"]) < 1.5 and "eval_top1" not in rows[0]
    assert (tmp_path / "pre" / "curve.png").is_file()
    assert pre("again", "--resume", tmp_path / "pre" / "checkpoint-0.pth.tar") == 0
    again = load(tmp_path / "again" / "last.pth.tar")
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, again["state_dict"][name]), name
    for name, value in whole["task_state"]["mim"].items():
        assert torch.equal(value, again["task_state"]["mim"][name]), name
    assert not any(name.startswith(("head", "backbone")) for name in whole["state_dict"])
    tuning = dict(model="test_vim", epochs=1, lr=1e-12, warmup_lr=1e-12, model_kwargs=["img_size=32", "patch_size=8"])
    assert run("tuned", pretrained_path=tmp_path / "pre" / "last.pth.tar", **tuning) == 0
    tuned = load(tmp_path / "tuned" / "last.pth.tar")["state_dict"]
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(tuned[name], value, atol=1e-6, rtol=0)
    assert tuned["head.weight"].shape[0] == 3
    capsys.readouterr()
    assert pre("other", "--resume", tmp_path / "pre" / "checkpoint-0.pth.tar", "--fill", "token") == 2
    assert "--fill" in capsys.readouterr().err
    assert pre("none", "--resume", tmp_path / "tuned" / "last.pth.tar") == 2


def test_options_without_meaning_are_refused(pre, capsys):
    for more, message in [
        (["--mixup", 0.5], "--mixup"),
        (["--mask-ratio", 1], "below 1"),
        (["--cell", 12], "stride 8"),
        (["--mask-ratio", 0.99], "none visible"),
        (["--model", "test_plainmamba", "--model-kwargs"], "batch norms"),
        (["--eval-metric", "top1"], "loss"),
    ]:
        assert pre("bad", *more) == 2, more
        assert message in capsys.readouterr().err


def test_averaged_weights_are_evaluated(pre, tmp_path):
    assert pre("ema", "--model-ema", "--model", "test_vmamba", "--model-kwargs", "--img-size", 64, "--epochs", 1) == 0
    rows = list(csv.DictReader((tmp_path / "ema" / "summary.csv").open()))
    assert rows[0]["eval_ema_loss"] != rows[0]["eval_loss"]
