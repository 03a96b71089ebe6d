"""What people look at: reports, comparisons, lists, and the classifier in a program of one's own."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import visionssm
from visionssm.commands import compare, info, predict, train, validate
from visionssm.commands.list import main as list_command
from visionssm.engine.data.images import BadImageError
from visionssm.engine.inference.evaluation import Mistakes, Tally
from visionssm.errors import UserError


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    argv = "--model test_vmamba --img-size 32 -b 8 --workers 0 --device cpu --epochs 1 --opt adamw --lr 2e-3"
    assert train.main([*argv.split(), "--data-dir", str(image_folder), "--output", str(folder)]) == 0
    return folder


def test_predictions_as_one_html_file(trained, image_folder, tmp_path):
    argv = [str(image_folder / "validation"), "--checkpoint", str(trained), "--device", "cpu"]
    assert predict.main([*argv, "--html", str(tmp_path / "r.html"), "--results-file", str(tmp_path / "p.json")]) == 0
    page = (tmp_path / "r.html").read_text()
    rows = json.loads((tmp_path / "p.json").read_text())
    wrong = sum(row["class_1"] != row["truth"] for row in rows)
    assert len(re.findall(r'<div class="card( wrong)?">', page)) == 12 and page.count('class="card wrong"') == wrong
    assert page.count("data:image/jpeg;base64,") == 12 and not re.search(r'(src|href)="(?!data:)', page)
    order = [match == " wrong" for match in re.findall(r'<div class="card( wrong)?">', page)]
    assert order == sorted(order, reverse=True), "mistakes come first"
    assert predict.main([*argv, "--topk", "0"]) == 2


def test_names_in_a_report_are_text(trained, tmp_path):
    path = tmp_path / "<b>bold.png"
    Image.new("RGB", (40, 40)).save(path)
    argv = ["--checkpoint", str(trained), "--device", "cpu", "--html", str(tmp_path / "r.html")]
    assert predict.main([str(path), *argv]) == 0
    assert "<b>" not in (tmp_path / "r.html").read_text()


def test_evaluation_is_drawn_and_written(trained, image_folder, tmp_path):
    files = {name: tmp_path / name for name in ("c.json", "c.csv", "c.png", "k.json", "r.png", "m.png", "v.csv")}
    argv = ["--checkpoint", str(trained), "--data-dir", str(image_folder), "--device", "cpu", "-j", "0"]
    argv += ["--confusion", str(files["c.json"]), str(files["c.csv"]), str(files["c.png"])]
    argv += [
        "--per-class",
        str(files["k.json"]),
        "--reliability",
        str(files["r.png"]),
        "--mistakes",
        str(files["m.png"]),
    ]
    assert validate.main([*argv, "--results-file", str(files["v.csv"])]) == 0
    rows, table = json.loads(files["c.json"].read_text()), list(csv.DictReader(files["c.csv"].open()))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == table
    assert sum(row["images"] for row in json.loads(files["k.json"].read_text())) == 12
    for name in ("c.png", "r.png"):
        with Image.open(files[name]) as picture:
            assert min(picture.size) > 300


def test_the_surest_mistakes_are_kept():
    mistakes, tally = Mistakes(most=2), Tally(3, bins=10)
    for logits, labels in (
        ([[9.0, 0, 0], [0, 2, 0], [0, 0, 5.0]], [0, 0, -100]),  # right, wrong, skipped
        ([[0, 0, 4.0], [1.0, 0, 0]], [1, 2]),  # both wrong
    ):
        mistakes.add(torch.tensor(logits), torch.tensor(labels))
        tally.add(torch.tensor(logits), torch.tensor(labels))
    assert mistakes.count == 3
    assert [(number, taken, truth) for _, number, taken, truth in mistakes.surest()] == [(3, 2, 1), (1, 1, 0)]
    rows = tally.reliability_rows()
    assert sum(row["images"] for row in rows) == 4
    weighted = sum(row["images"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / 4
    assert weighted == pytest.approx(tally.calibration_error(), abs=1e-2)


def test_runs_side_by_side(run, tmp_path, capsys):
    assert run("cross", epochs=1, batch_size=8) == run("hilbert", epochs=1, batch_size=8, scan="hilbert", lr=1e-3) == 0
    capsys.readouterr()
    folders = [str(run.folder / "cross"), str(run.folder / "hilbert")]
    more = ["--results-file", str(tmp_path / "c.csv"), "--plot", str(tmp_path / "c.png")]
    assert compare.main([*folders, *more]) == 0
    rows = {row["run"]: row for row in csv.DictReader((tmp_path / "c.csv").open())}
    assert list(rows["cross"])[:3] == ["run", "model_kwargs", "lr"], "what differs, and nothing else"
    assert "scan=hilbert" in capsys.readouterr().out
    summary = list(csv.DictReader((run.folder / "hilbert" / "summary.csv").open()))
    best = max(float(row["eval_top1"]) for row in summary)
    assert float(rows["hilbert"]["best_top1"]) == pytest.approx(best, abs=1e-3)
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.format == "PNG"
    assert compare.main([str(tmp_path)]) == 2
    assert "no args.yaml and no summary.csv" in capsys.readouterr().err
    assert compare.main([*folders, "--eval-metric", "top3"]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_what_a_name_or_run_is(trained, capsys):
    assert info.main(["vmamba_tiny_s1l8"]) == 0
    told = capsys.readouterr().out
    assert "3 x 224 x 224" in told and "vmamba/vmamba_tiny_s1l8" in told and "82.6" in told
    assert info.main([str(trained), "--json"]) == 0
    told = capsys.readouterr().out
    facts = json.loads(told[told.index("{") :])
    assert facts["model"] == "test_vmamba" and facts["classes"] == ["circle", "cross", "stripes"]
    assert info.main(["vmamba_tiny"]) == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize("argv, name", [(["vim_*"], "vim_tiny"), (["--what", "scans", "hilb"], "hilbert")])
def test_lists(argv, name, capsys):
    assert list_command(argv) == 0
    first = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert first[0] == "name" and name in first and "vmamba_tiny_s1l8" not in first
    assert list_command(["hilbrt", *argv[:2][argv[0] != "--what" and 2 :]]) == 2


def test_a_classifier_in_a_program(trained, image_folder, tmp_path):
    classifier = visionssm.load_classifier(trained)
    path = image_folder / "validation/circle/0.png"
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    (told,) = classifier.predict(path)
    assert told.truth == "circle" and sum(told.probabilities) == pytest.approx(1, abs=1e-6)
    for other in classifier.predict([str(path), pixels, np.asarray(pixels)], topk=None):
        assert other.names == told.names and other.probabilities == pytest.approx(told.probabilities, abs=1e-6)
    assert len(classifier.predict(pixels, topk=2)[0].names) == 2
    with pytest.raises(BadImageError, match="float64"):
        classifier.predict(np.zeros((8, 8, 3)))
    with pytest.raises(UserError, match="at least 1"):
        classifier.predict(path, topk=0)
    assert visionssm.load_classifier("test_vmamba", num_classes=4).model.num_classes == 4


@pytest.mark.slow
def test_a_run_imports_what_it_was_trained_with(image_folder, tmp_path):
    """A scan order of one's own, from the folder that the command is called in; the run says it."""
    (tmp_path / "my_order.py").write_text(
        "import torch\nfrom visionssm.scans import register_scan\n"
        "@register_scan('mine_backwards', routes=1)\n"
        "def backwards(height, width):\n    return torch.arange(height * width).flip(0)[None].int()\n"
    )
    python = [sys.executable, "-m", "visionssm"]
    given = f"--import my_order --scan mine_backwards --data-dir {image_folder} --output run --model test_vmamba "
    given += "--img-size 32 -b 8 --workers 0 --device cpu --epochs 1 --opt adamw --lr 1e-3"
    for argv in (
        ["train", *given.split()],
        ["validate", "--checkpoint", "run", "--data-dir", str(image_folder), "--workers", "0", "--device", "cpu"],
    ):
        result = subprocess.run([*python, *argv], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert not result.stderr, "nothing is noise"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    argv = [*python, "info", str(tmp_path / "run")]
    told = subprocess.run(argv, cwd=elsewhere, capture_output=True, text=True, check=True).stdout
    assert re.search(r"imports +my_order", told)
