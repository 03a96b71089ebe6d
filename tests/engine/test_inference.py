"""Evaluation and prediction with the checkpoint of a run."""

import argparse
import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from visionssm.analysis.exporting import Exported
from visionssm.commands import predict, validate
from visionssm.engine.inference import prediction


@pytest.fixture(scope="module")
def checkpoint(image_folder, tmp_path_factory):
    from visionssm.commands import train

    folder = tmp_path_factory.mktemp("trained")
    assert (
        train.main(
            [
                "--data-dir",
                str(image_folder),
                "--output",
                str(folder),
                "--model",
                "test_vmamba",
                "--img-size",
                "32",
                "--batch-size",
                "4",
                "--epochs",
                "2",
                "--workers",
                "0",
                "--opt",
                "adamw",
                "--lr",
                "2e-3",
                "--model-ema",
                "--warmup-epochs",
                "0",
                "--mean",
                "0.5",
                "--std",
                "0.4",
                "--device",
                "cpu",
                "--model-kwargs",
                "scan=bidirectional",
            ]
        )
        == 0
    )
    return folder / "last.pth.tar"


def test_validate_repeats_the_numbers_of_the_run(checkpoint, image_folder, tmp_path):
    rows = list(csv.DictReader((checkpoint.parent / "summary.csv").open()))
    flags = {"": "eval_ema_top1", "--use-ema": "eval_ema_top1", "--weights raw": "eval_top1"}
    for flag, column in flags.items():
        output = tmp_path / "result.json"
        argv = ["--checkpoint", str(checkpoint), "--data-dir", str(image_folder), "--workers", "0", "--device", "cpu"]
        assert validate.main([*argv, "--results-file", str(output), *flag.split()]) == 0
        (row,) = json.loads(output.read_text())
        assert row["top1"] == pytest.approx(float(rows[-1][column]), abs=1e-3)
        assert (row["model"], row["img_size"], row["images"]) == ("test_vmamba", 32, 12)


def test_validate_sweeps_sizes_and_crops(checkpoint, image_folder, tmp_path):
    argv = ["--checkpoint", str(checkpoint), "--data-dir", str(image_folder), "--workers", "0", "--device", "cpu"]
    sweep = ["--img-size", "32", "48", "--crop-pct", "0.9", "1.0"]
    assert (
        validate.main([*argv, *sweep, "--results-file", str(tmp_path / "r.csv"), "--plot", str(tmp_path / "p.png")])
        == 0
    )
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [(row["img_size"], row["crop_pct"]) for row in rows] == [
        ("32", "0.9"),
        ("32", "1.0"),
        ("48", "0.9"),
        ("48", "1.0"),
    ]
    assert (tmp_path / "p.png").is_file()


def test_validate_many_models_by_a_pattern(image_folder, tmp_path, capsys):
    argv = ["--data-dir", str(image_folder), "--workers", "0", "--device", "cpu", "--num-classes", "3"]
    argv += ["--img-size", "32", "--results-file", str(tmp_path / "r.json"), "--plot", str(tmp_path / "p.png")]
    assert validate.main([*argv, "--model", "test_v*mamba"]) == 0
    found = {row["model"] for row in json.loads((tmp_path / "r.json").read_text())}
    assert "test_vmamba" in found and found == set(timm.list_models("test_v*mamba"))
    assert validate.main([*argv, "--model", "nothing_*"]) == 2
    assert "no model matches 'nothing_*'" in capsys.readouterr().err


def test_real_labels_want_imagenet(checkpoint, image_folder, capsys):
    argv = ["--checkpoint", str(checkpoint), "--data-dir", str(image_folder), "--workers", "0", "--device", "cpu"]
    assert validate.main([*argv, "--real-labels"]) == 2
    assert "50000 validation images, found 12" in capsys.readouterr().err


def test_validate_csv_and_wrong_input(checkpoint, image_folder, tmp_path, capsys):
    argv = ["--data-dir", str(image_folder), "--workers", "0", "--device", "cpu"]
    assert validate.main([*argv, "--checkpoint", str(checkpoint), "--results-file", str(tmp_path / "r.csv")]) == 0
    assert "top1" in (tmp_path / "r.csv").read_text()
    assert validate.main([*argv, "--checkpoint", str(checkpoint), "--model", "test_resnet"]) == 2
    assert "expected 'test_resnet'" in capsys.readouterr().err
    assert validate.main(argv) == 2
    assert "neither --model nor --checkpoint" in capsys.readouterr().err


def test_predict_table_csv_and_picture(checkpoint, image_folder, tmp_path, capsys):
    outputs = ["--output", str(tmp_path / "p.png"), "--csv", str(tmp_path / "p.csv")]
    argv = ["--checkpoint", str(checkpoint), "--device", "cpu", *outputs]
    assert predict.main([str(image_folder / "validation"), *argv]) == 0
    printed = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 12
    wrong = sum(row["truth"] != row["class_1"] for row in rows)
    assert printed.count("WRONG") == wrong
    assert f"{12 - wrong} of 12 right" in printed
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG"


def test_predict_single_file_without_truth(checkpoint, image_folder, tmp_path, capsys):
    image = tmp_path / "picture.png"
    image.write_bytes((image_folder / "validation" / "cross" / "0.png").read_bytes())
    assert predict.main([str(image), "--checkpoint", str(checkpoint), "--device", "cpu"]) == 0
    assert "right" not in capsys.readouterr().out


def test_predict_names_what_is_wrong(checkpoint, image_folder, tmp_path, capsys):
    argv = ["--checkpoint", str(checkpoint), "--device", "cpu"]
    (tmp_path / "broken.png").write_bytes(b"not an image")
    good = str(image_folder / "validation" / "cross" / "0.png")
    assert predict.main([str(tmp_path / "none.png"), *argv]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert predict.main([good, str(tmp_path / "broken.png"), *argv]) == 2
    assert "broken.png cannot be read" in capsys.readouterr().err
    assert predict.main([good, str(tmp_path / "broken.png"), *argv, "--bad-images", "skip"]) == 0
    assert "1 images" in capsys.readouterr().out


def test_mistakes_come_first():
    from visionssm.engine.reports.plots import Prediction

    right, wrong = Prediction("a", ["x"], [0.9], "x"), Prediction("b", ["x"], [0.6], "y")
    lines = prediction.table([right, wrong]).splitlines()
    assert "WRONG" in lines[2] and "WRONG" not in lines[3]


@pytest.fixture(scope="module")
def authors(tmp_path_factory):
    """A file as authors leave it: raw weights that always say class 0, averaged ones that say class 1, foreign options.

    Beside it, a folder of 4 images, one of them of class 0 and two of class 1.
    """
    folder = tmp_path_factory.mktemp("authors")
    model = timm.create_model("test_vmamba", num_classes=3)
    raw, averaged = (dict(model.state_dict()) | {"head.fc.bias": 99 * torch.eye(3)[k]} for k in (0, 1))
    options = argparse.Namespace(model="vim_tiny_patch16_224", num_classes=1000, in_chans=4)
    torch.save({"model": raw, "model_ema": averaged, "args": options, "epoch": 3}, folder / "authors.pth")
    for number, kind in enumerate(("a", "b", "b", "c")):
        (folder / "images/validation" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (40 * number, 90, 200)).save(folder / "images/validation" / kind / f"{number}.png")
    return folder


@pytest.mark.parametrize("weights, said", [("auto", 1), ("raw", 0), ("ema", 1)])
def test_every_tool_takes_the_same_weights_of_a_file(authors, tmp_path, monkeypatch, weights, said):
    path, images = str(authors / "authors.pth"), str(authors / "images")
    flags = ["--checkpoint", path, "--num-classes", "3", "--img-size", "32", "--weights", weights]
    argv = ["--model", "test_vmamba", "--device", "cpu", *flags]
    assert validate.main([*argv, "--data-dir", images, "-j", "0", "--results-file", str(tmp_path / "v.json")]) == 0
    assert json.loads((tmp_path / "v.json").read_text())[0]["top1"] == (25, 50)[said]
    assert predict.main([images, *argv, "--csv", str(tmp_path / "p.csv")]) == 0
    assert {row["class_1"] for row in csv.DictReader((tmp_path / "p.csv").open())} == {str(said)}

    answers = []

    def export_model(model, image, path, **kwargs):
        answers.append(model(image).argmax(1))
        path.touch()
        return Exported(0.0, 1, 0, [])

    monkeypatch.setattr("visionssm.analysis.exporting.export_model", export_model)
    monkeypatch.setattr(
        sys, "argv", ["export.py", "--model", "test_vmamba", *flags, "--output", str(tmp_path / "m.pt2")]
    )
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(Path(__file__).parents[2] / "tools/export.py"), run_name="__main__")
    if weights == "auto":
        overlay = dict(file=path)
        model = timm.create_model("test_vmamba", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=3)
        answers.append(model.eval()(torch.zeros(1, 3, 32, 32)).argmax(1))
    assert {int(k) for answer in answers for k in answer} == {said}


def test_a_file_that_does_not_say_its_model(authors, capsys):
    assert validate.main(["--checkpoint", str(authors / "authors.pth"), "--data-dir", str(authors / "images")]) == 2
    assert "does not say its model; name it with --model" in capsys.readouterr().err
