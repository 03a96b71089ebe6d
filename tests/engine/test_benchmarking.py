"""The benchmark command and the pictures of sweeps."""

import csv
import json

import pytest
from PIL import Image

from visionssm.engine import benchmarking
from visionssm.engine.plots import draw_tradeoff

FAST = ["--device", "cpu", "--num-warm-iter", "0", "--num-bench-iter", "1", "--img-size", "32"]


def test_rows_of_two_models_and_modes(tmp_path, capsys):
    argv = ["--model", "test_vmamba", "test_resnet", "--bench", "both", "-b", "2", *FAST]
    assert (
        benchmarking.main([*argv, "--results-file", str(tmp_path / "r.json"), "--plot", str(tmp_path / "p.png")]) == 0
    )
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [(row["model"], row["bench"]) for row in rows] == [
        ("test_vmamba", "inference"),
        ("test_vmamba", "train"),
        ("test_resnet", "inference"),
        ("test_resnet", "train"),
    ]
    assert all(row["images_per_second"] > 0 and row["gmacs"] > 0 and row["status"] == "ok" for row in rows)
    assert len(capsys.readouterr().out.strip().splitlines()) == 5
    with Image.open(tmp_path / "p.png") as image:
        assert image.format == "PNG"


def test_sweep_of_batch_sizes_as_csv(tmp_path):
    argv = ["--model", "test_resnet", "-b", "1", "2", *FAST, "--precision", "amp_bfloat16"]
    assert benchmarking.main([*argv, "--results-file", str(tmp_path / "r.csv"), "--plot", str(tmp_path / "p.png")]) == 0
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert [row["batch_size"] for row in rows] == ["1", "2"]
    assert (tmp_path / "p.png").is_file()


@pytest.mark.parametrize(
    "name, found",
    [
        ("test_vmambo", "did you mean 'test_vmamba'"),
        ("nothing_*", "no model matches 'nothing_*'"),
    ],
)
def test_unknown_models(name, found, capsys):
    assert benchmarking.main(["--model", name, *FAST]) == 2
    assert found in capsys.readouterr().err


def test_tradeoff_picture(tmp_path):
    rows = [
        {"model": name, "img_size": 224, "top1": top1, "images_per_second": rate, "param_count_m": size}
        for name, top1, rate, size in (("a", 80.0, 900, 20), ("b", 82.0, 500, 40))
    ]
    draw_tradeoff(rows, tmp_path / "t.png", "two models")
    with Image.open(tmp_path / "t.png") as image:
        assert image.width > 800
