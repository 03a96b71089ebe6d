"""What a run knew reaches the commands that use it, and what it is told anew when it goes on."""

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import BASE, CLASSES, load
from PIL import Image

from visionssm.analysis.exporting import Exported
from visionssm.commands import benchmark, predict, train, validate
from visionssm.engine.inference.classifier import load_classifier
from visionssm.engine.inference.evaluation import Tally
from visionssm.engine.training.building import balanced_samples, balanced_weights, weighted_loss

NAMES = ("stripes", "circle", "cross")  # another order than the alphabet's


@pytest.fixture(scope="module")
def told(image_folder, tmp_path_factory):
    """A run that was told a class map, an image mode, a mean and averaging."""
    folder = tmp_path_factory.mktemp("told")
    (folder / "map.txt").write_text("".join(f"{name}\n" for name in NAMES))
    options = BASE | {"data-dir": image_folder, "output": folder / "run", "epochs": 3, "class-map": folder / "map.txt"}
    options |= {"input-img-mode": "HSV", "mean": 0.4, "std": 0.3}
    argv = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert train.main([*argv, "--no-aug"]) == 0
    return folder / "run" / "last.pth.tar"


def validated(path: Path, data: Path, tmp_path: Path, *more: str) -> tuple[int, dict]:
    results = tmp_path / "results.json"
    argv = ["--checkpoint", str(path), "--data-dir", str(data), "-j", "0", "--device", "cpu"]
    code = validate.main([*argv, "--results-file", str(results), *more])
    return code, json.loads(results.read_text())[0] if code == 0 else {}


def test_a_checkpoint_says_how_its_images_and_classes_are_meant(told, image_folder, tmp_path):
    rows = list(csv.DictReader((told.parent / "summary.csv").open()))
    code, row = validated(told, image_folder, tmp_path)
    assert code == 0 and row["top1"] == pytest.approx(float(rows[-1]["eval_top1"]), abs=1e-3)
    assert row["loss"] == pytest.approx(float(rows[-1]["eval_loss"]), abs=1e-4)
    classifier = load_classifier(None, told)
    assert classifier.classes == list(NAMES) and classifier.reader.mode == "HSV"
    assert validated(told, image_folder, tmp_path, "--input-img-mode", "RGB")[1]["loss"] != row["loss"]


def test_labels_are_mapped_by_name(told, image_folder, tmp_path, capsys):
    data = tmp_path / "part"
    for name in CLASSES[1:]:
        shutil.copytree(image_folder / "validation" / name, data / "validation" / name)
    confusion = [str(tmp_path / name) for name in ("c.csv", "c.png")]
    more = ["--confusion", *confusion, "--per-class", str(tmp_path / "classes.csv")]
    code, row = validated(told, data, tmp_path, *more)
    assert predict.main([str(data / "validation"), "--checkpoint", str(told), "--device", "cpu"]) == 0
    right = round(row["top1"] * 8 / 100)
    assert code == 0 and f"{right} of 8 right" in capsys.readouterr().out
    table = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [(r["class"], r["images"]) for r in table] == [("stripes", "4"), ("circle", "0"), ("cross", "4")]
    counts = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert sum(int(counts[NAMES.index(name)][f"as {name}"]) for name in CLASSES[1:]) == right
    with Image.open(tmp_path / "c.png") as picture:
        assert picture.format == "PNG"
    (data / "validation" / "cross").rename(data / "validation" / "kross")
    capsys.readouterr()
    assert validated(told, data, tmp_path)[0] == 2
    assert "does not know 1 class(es) of the data: kross; it knows circle, cross, stripes" in capsys.readouterr().err


def test_benchmark_and_export_take_a_run(told, tmp_path, monkeypatch, capsys):
    argv = ["--checkpoint", str(told), "--device", "cpu", "-b", "1", "--num-warm-iter", "0", "--num-bench-iter", "1"]
    assert benchmark.main([*argv, "--results-file", str(tmp_path / "b.csv")]) == 0
    (row,) = csv.DictReader((tmp_path / "b.csv").open())
    assert (row["model"], row["img_size"]) == ("test_vmamba", "32")
    seen = []

    def export_model(model, image, path, **kwargs):
        seen.append((model.num_classes, tuple(image.shape[1:])))
        path.touch()
        return Exported(0.0, 1, 0, [])

    monkeypatch.setattr("visionssm.analysis.exporting.export_model", export_model)
    monkeypatch.setattr(sys, "argv", ["export.py", "--checkpoint", str(told), "--output", str(tmp_path / "m.onnx")])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(Path(__file__).parents[2] / "tools/export.py"), run_name="__main__")
    assert seen == [(3, (3, 32, 32))]


def test_more_epochs_take_the_new_schedule_at_once(run, capsys):
    assert run(epochs=2) == 0
    assert run(epochs=4, resume="auto", weight_decay=0.07) == 0
    assert (
        "epochs 2 -> 4, weight_decay 2e-05 -> 0.07; the learning rate of epoch 2 is 1.000e-03"
        in capsys.readouterr().out
    )
    rates = [float(row["lr"]) for row in csv.DictReader((run.folder / "run" / "summary.csv").open())]
    assert rates[2:] == pytest.approx([1e-3, 2e-3 * (1 - 2**-0.5) / 2])
    groups = load(run.folder / "run" / "last.pth.tar")["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.07}
    assert run(epochs=5, resume="auto", opt="sgd") == 2
    assert "--opt adamw, not sgd" in capsys.readouterr().err


def test_a_constant_rate_follows_the_option(run):
    assert run(epochs=1, sched="none") == 0
    assert run(epochs=2, sched="none", lr=5e-4, resume="auto") == 0
    assert [float(row["lr"]) for row in csv.DictReader((run.folder / "run" / "summary.csv").open())] == [2e-3, 5e-4]


def test_rare_classes_weigh_as_much_as_frequent_ones(run, capsys):
    labels = [0] * 6 + [1] * 2
    assert torch.allclose(balanced_weights(labels, 3), torch.tensor([8 / 12, 8 / 4, 0.0]))
    samples = balanced_samples(labels)
    assert sum(samples[:6]) == pytest.approx(sum(samples[6:]))
    loss = weighted_loss({"smoothing": 0.1, "soft_targets": False}, torch.tensor([1.0, 3.0]))
    logits, target = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    expected = torch.nn.functional.cross_entropy(logits, target, torch.tensor([1.0, 3.0]), label_smoothing=0.1)
    assert torch.equal(loss(logits, target), expected)
    assert run(epochs=1, class_weights=["balanced"], balanced_sampling=True) == 0
    assert "class weights: 1, 1, 1" in capsys.readouterr().out
    assert run("other", class_weights=[1, 2]) == 2
    assert "--class-weights holds 2 value(s), expected 3" in capsys.readouterr().err


def test_tally_by_hand():
    tally = Tally(2)
    sure = torch.tensor([0.9, 0.1]).log()
    tally.add(torch.stack([sure, sure, sure.flip(0)]), torch.tensor([0, 1, -100]))
    assert tally.confusion.tolist() == [[1, 0], [1, 0]]
    assert tally.calibration_error() == pytest.approx(40.0)  # sure by 90 %, right in 50 %
    assert tally.mean_class_accuracy() == 50.0
    assert [row["precision"] for row in tally.rows(["a"])] == [50.0, None]
