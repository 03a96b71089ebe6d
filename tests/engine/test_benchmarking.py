"""The benchmark command and the pictures of sweeps."""

import csv
import json

import pytest
from PIL import Image

from visionssm.commands import benchmark as benchmarking
from visionssm.engine.reports.plots import draw_tradeoff

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
    assert all(0 < row["scan_share"] < 1 for row in rows[:2]) and all(row["scan_share"] == 0 for row in rows[2:])
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


@pytest.mark.parametrize("models, sizes", [(2, 1), (1, 3), (12, 1), (9, 2)])
def test_tradeoff_picture(tmp_path, models, sizes):
    rows = [
        {
            "model": f"m{number}",
            "img_size": 224 + 32 * size,
            "crop_pct": 1.0,
            "top1": 80.0 + number % 3,
            "images_per_second": 900 - 10 * number,
            "param_count_m": 20,
        }
        for number in range(models)
        for size in range(sizes)
    ]
    draw_tradeoff(rows, tmp_path / "t.png", "some models")
    with Image.open(tmp_path / "t.png") as image:
        assert image.width > 800
