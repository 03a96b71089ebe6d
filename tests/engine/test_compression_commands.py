"""The commands that remove what matters least and that round values, and what reads their files."""

import csv
import json

import pytest
import timm
import torch
from conftest import BASE

from visionssm.checkpoints import read_content
from visionssm.commands import predict, quantize, shed, train, validate
from visionssm.engine.inference.classifier import load_classifier


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    options = BASE | {"data-dir": image_folder, "output": folder, "epochs": 1}
    assert train.main([part for name, value in options.items() for part in (f"--{name}", str(value))]) == 0
    return folder / "last.pth.tar"


@pytest.fixture
def call(trained, image_folder, tmp_path):
    def run(output, *more):
        argv = ["--checkpoint", trained, "--data-dir", image_folder, "--output", tmp_path / output]
        argv += ["--samples", 12, "--batch-size", 6, "--workers", 0, "--device", "cpu", *more]
        return shed.main([str(value) for value in argv])

    return run


def test_search_goes_on_where_it_stopped(call, tmp_path, capsys):
    chosen = ["--kind", "ssm", "--candidates", "stages.0.blocks.0.mixer.ssm", "stages.1.blocks.0.mixer.ssm"]
    assert call("parts", *chosen, "--steps", 1) == 0
    first = json.loads((tmp_path / "parts" / "shedding.json").read_text())
    assert call("parts", *chosen, "--steps", 2) == 0
    found = json.loads((tmp_path / "parts" / "shedding.json").read_text())
    assert found["steps"][:1] == first["steps"] and len(found["removed"]) == 2
    assert call("whole", *chosen, "--steps", 2) == 0
    again = json.loads((tmp_path / "whole" / "shedding.json").read_text())
    assert again["steps"] == found["steps"] and again["removed"] == found["removed"]
    rows = list(csv.DictReader((tmp_path / "parts" / "table.csv").open()))
    assert [row["removed"] for row in rows] == ["", *found["removed"]]
    assert float(rows[2]["gmacs"]) < float(rows[1]["gmacs"]) < float(rows[0]["gmacs"])
    assert float(rows[2]["param_count_m"]) < float(rows[0]["param_count_m"])
    assert (tmp_path / "parts" / "table.md").read_text().count("\n") == 5
    capsys.readouterr()
    assert call("parts", *chosen, "--steps", 2, "--seed", 1) == 2
    assert "seed 0" in capsys.readouterr().err
    (tmp_path / "parts" / "shedding.json").write_text("{}")
    assert call("parts", *chosen, "--steps", 2) == 2
    assert "no record" in capsys.readouterr().err


def test_pruned_file_needs_no_argument(call, run, image_folder, tmp_path, capsys):
    """It says what it lacks to create_model, to the tools, and to a run that tunes it and is then pruned again."""
    budget = [
        "--kind",
        "route",
        "--steps",
        2,
        "--candidates",
        *(f"stages.2.blocks.0.mixer.ssm.routes.{i}" for i in (0, 3)),
    ]
    assert call("parts", *budget, "--budget-gmacs", 0) == 0
    assert "not reached" in capsys.readouterr().out
    path = tmp_path / "parts" / "pruned.pth"
    data = ["--data-dir", str(image_folder), "-j", "0", "--device", "cpu", "--results-file", str(tmp_path / "r.json")]
    assert validate.main(["--checkpoint", str(path), *data]) == 0
    row = json.loads((tmp_path / "r.json").read_text())[0]
    table = list(csv.DictReader((tmp_path / "parts" / "table.csv").open()))
    assert row["loss"] == pytest.approx(float(table[-1]["loss"]), abs=1e-4)
    assert predict.main([str(image_folder / "validation"), "--checkpoint", str(path), "--device", "cpu"]) == 0
    removed = ("stages.2.blocks.0.mixer.ssm.routes.0", "stages.2.blocks.0.mixer.ssm.routes.3")
    classifier = load_classifier(None, path)
    assert set(classifier.model.removed) == set(removed) and classifier.classes == ["circle", "cross", "stripes"]
    overlay = {"file": str(path)}
    model = timm.create_model("test_vmamba", num_classes=3, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), classifier.model(x))
    for option in ("pretrained_path", "initial_checkpoint"):
        assert run(option, epochs=1, **{option: path}) == 0
        tuned = load_classifier(None, tmp_path / option / "last.pth.tar")
        assert set(tuned.model.removed) == set(removed)
    argv = [
        "--checkpoint",
        tmp_path / "pretrained_path" / "last.pth.tar",
        "--data-dir",
        image_folder,
        "--device",
        "cpu",
    ]
    argv += [
        "--output",
        tmp_path / "more",
        "--kind",
        "ssm",
        "--samples",
        4,
        "--candidates",
        "stages.1.blocks.0.mixer.ssm",
    ]
    assert shed.main([str(value) for value in argv]) == 0
    assert len(load_classifier(None, tmp_path / "more" / "pruned.pth").model.removed) == 3
    assert run("continued", resume=path) == 2
    assert "--pretrained-path" in capsys.readouterr().err


def test_bad_options(call, capsys):
    for more, message in [
        (["--candidates", "stages.9"], "no block"),
        (["--steps", 99], "99 steps"),
        (["--samples", 0], "--samples"),
        (["--split", "nowhere"], "nowhere"),
    ]:
        assert call("bad", *more) == 2, more
        assert message in capsys.readouterr().err


@pytest.fixture
def quantised(trained, image_folder, tmp_path):
    def run(*more):
        argv = ["--checkpoint", trained, "--data-dir", image_folder, "--samples", 12, "--batch-size", 6]
        argv += ["--output", tmp_path / "q.pth", "--results-file", tmp_path / "q.json", "--device", "cpu", *more]
        return quantize.main([str(value) for value in argv])

    return run


@pytest.mark.parametrize(
    "more",
    [
        ["--weight-bits", 4],
        ["--rewrite", "--observer", "percentile", "--layers", "--skip", "head.fc"],
        ["--method", "int8-weight-only"],
        ["--method", "int8-dynamic"],
    ],
    ids=lambda more: " ".join(map(str, more)),
)
def test_quantised_file_needs_no_argument(quantised, trained, image_folder, tmp_path, more):
    if "--method" in more:
        pytest.importorskip("torchao")
    assert quantised(*more) == 0
    row = json.loads((tmp_path / "q.json").read_text())[0]
    assert row["kb"] < row["float_kb"]
    if "--weight-bits" in more:  # eight bits may agree to the last digit that is printed
        assert row["loss"] != row["float_loss"]
    argv = ["--checkpoint", str(tmp_path / "q.pth"), "--device", "cpu"]
    data = ["--data-dir", str(image_folder), "-j", "0", "--results-file", str(tmp_path / "r.json")]
    assert validate.main([*argv, *data]) == 0
    found = json.loads((tmp_path / "r.json").read_text())[0]
    assert found["loss"] == pytest.approx(row["loss"], abs=1e-4)
    assert predict.main([str(image_folder / "validation"), *argv]) == 0
    if "--method" in more:
        assert (tmp_path / "q.pth").stat().st_size < trained.stat().st_size


def test_quantising_says_what_is_wrong(quantised, tmp_path, capsys):
    for more, message in [
        (["--weight-bits", 1], "from 2 to 16"),
        (["--skip", "heads"], "no module 'heads'"),
        (["--rewrite", "norm"], "no place"),
        (["--rewrite", "spin"], "'spin'"),
        (["--method", "int8-dynamic", "--rewrite"], "simulated"),
    ]:
        assert quantised(*more) == 2, more
        assert message in capsys.readouterr().err
    assert quantised() == 0
    assert quantised("--checkpoint", tmp_path / "q.pth") == 2
    assert "already" in capsys.readouterr().err
    content = read_content(tmp_path / "q.pth")
    content["quantization"] = {"method": "float3"}
    torch.save(content, tmp_path / "q.pth")
    assert validate.main(["--checkpoint", str(tmp_path / "q.pth"), "--data-dir", "x", "--device", "cpu"]) == 2
    assert "float3" in capsys.readouterr().err
