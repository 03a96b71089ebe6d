"""Exported programs compute what the model computes, and say what a user of them needs to know."""

import csv
import json
import subprocess
import sys

import pytest
import timm
import torch

import visionssm
from visionssm.analysis.exporting import FeatureMaps, export_model
from visionssm.commands.export import main

PICO = [name for name in visionssm.list_models() if name.startswith("test_")]


# 10 to 20 seconds a model; that every model exports at all is a test over the registry
CASES = [
    pytest.param(name, ending, marks=[] if name == "test_vmamba" else pytest.mark.slow)
    for name in PICO
    for ending in ("pt2", "onnx")
]


@pytest.mark.parametrize(("name", "ending"), CASES)
def test_pico_variants_export(name, ending, tmp_path):
    if ending == "onnx":
        pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = timm.create_model(name)
    size = model.pretrained_cfg["input_size"]
    path = tmp_path / f"model.{ending}"
    assert export_model(model, torch.randn(2, *size), path).difference < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.stat().st_mode & 0o044


def test_unknown_ending_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'model.bin'; the ending must be one of .pt2, .onnx"):
        export_model(timm.create_model("test_vmamba"), torch.randn(2, 3, 32, 32), tmp_path / "model.bin")


def test_what_no_program_can_be_checked_with_is_named(tmp_path):
    model = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match="float32, float16 or float64 are needed, found torch.bfloat16"):
        export_model(model.bfloat16(), torch.randn(2, 3).bfloat16(), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="runs .onnx files, not 'm.pt2'"):
        export_model(model, torch.randn(2, 3), tmp_path / "m.pt2", reference=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_onnx_file_says_how_it_is_used(tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "maps.onnx"
    assert main(["--model", "test_vssd", "--features-only", "--img-size", "32", "--output", str(path)]) == 0, (
        capsys.readouterr()
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == [f"features_{i}" for i in range(4)]
    facts = session.get_modelmeta().custom_metadata_map
    config = timm.data.resolve_data_config({}, model=timm.create_model("test_vssd"))
    assert json.loads(facts["mean"]) == list(config["mean"]) and json.loads(facts["input_size"]) == [3, 32, 32]


@pytest.mark.slow
def test_a_standalone_program_needs_no_package(tmp_path):
    path, model, images = tmp_path / "model.pt2", timm.create_model("test_vim").eval(), torch.randn(1, 3, 32, 32)
    export_model(model, torch.randn(2, 3, 32, 32), path, standalone=True)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; sys.modules['visionssm'] = None; "
        f"p = torch.export.load({str(path)!r}).module(); "
        f"torch.save(p(torch.load({str(tmp_path / 'images.pt')!r}, weights_only=True)), {str(tmp_path / 'out.pt')!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    torch.testing.assert_close(out, model(images).detach(), atol=1e-5, rtol=1e-4)


def test_sizes_are_left_open_only_without_a_scan(tmp_path):
    images = torch.randn(2, 3, 96, 96)
    told = export_model(timm.create_model("test_vssd"), images, tmp_path / "m.pt2", dynamic_size=True)
    assert {shape[2:] for shape in told.checked} == {(96, 96), (128, 96), (64, 160)}
    with pytest.raises(ValueError, match="scan orders of VMamba become part of the program"):
        export_model(timm.create_model("test_vmamba"), images, tmp_path / "n.pt2", dynamic_size=True)


def test_a_program_that_differs_is_refused(tmp_path):
    class Stateful(torch.nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * self.calls

    with pytest.raises(ValueError, match="differs from the model"):
        export_model(Stateful(3, 2), torch.randn(2, 3), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
    told = export_model(Stateful(3, 2), torch.randn(2, 3), tmp_path / "m.pt2", tolerance=100.0)
    assert 1e-4 < told.difference < 100 and (tmp_path / "m.pt2").exists()


def test_feature_maps_are_those_of_the_model():
    model, images = timm.create_model("test_vmamba").eval(), torch.randn(1, 3, 32, 32)
    maps = FeatureMaps(model, [0, -1])(images)
    expected = model.forward_intermediates(images, indices=[0, -1], intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_a_folder_is_loaded_by_timm(tmp_path, capsys):
    folder = tmp_path / "model"
    told = ["--model", "test_vim", "--num-classes", "7", "--output", str(folder), "--push", "owner/name"]
    assert main(told) == 0, capsys.readouterr()
    assert "would push config.json" in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert timm.create_model(f"local-dir:{folder}", pretrained=True).num_classes == 7


def test_a_convolution_of_volumes_without_bias(tmp_path):
    pytest.importorskip("onnxruntime")
    model, image = torch.nn.Conv3d(2, 3, 3, bias=False), torch.randn(2, 2, 4, 4, 4)
    told = export_model(model, image, tmp_path / "m.onnx")
    assert told.difference < 1e-5 and told.nodes == 1 and told.eager is None


def test_weights_beyond_one_file_lie_beside_it(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr("visionssm.analysis.exporting._ONNX_LIMIT", 4096)
    model, image = torch.nn.Linear(64, 64), torch.randn(2, 64)
    for _ in range(2):  # the second takes the place of the first
        torch.nn.init.normal_(model.weight)
        told = export_model(model, image, tmp_path / "m.onnx")
        assert told.difference < 1e-5 and told.size > 4 * 64 * 64
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
        assert (tmp_path / "m.onnx").stat().st_size < 4096
        assert all(p.stat().st_mode & 0o044 for p in tmp_path.iterdir())
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": image.numpy()})
    assert torch.allclose(torch.from_numpy(found), model(image), atol=1e-5)


@pytest.mark.parametrize("descending", [False, True])
def test_a_stable_sort(descending, tmp_path):
    """Of more equal values than an unstable sort leaves in place."""
    pytest.importorskip("onnxruntime")

    class Sort(torch.nn.Module):
        def forward(self, x):
            return tuple((x * 2).round().sort(dim=1, stable=True, descending=descending))

    image = torch.randn(2, 500, 3)
    assert export_model(Sort(), image, tmp_path / "m.onnx").difference == 0


def test_float64_is_run_by_onnx_itself(tmp_path, caplog):
    """With rows gathered from more places than NumPy's choose takes, and convolutions, which ONNX Runtime cannot."""
    pytest.importorskip("onnxruntime")

    class Sorted(torch.nn.Conv1d):
        def forward(self, x):
            order = torch.arange(100.0).flip(0).argsort(stable=True) + 0 * x[:, :1].argsort(stable=True)
            return super().forward(x.gather(2, order.expand_as(x)))

    told = export_model(Sorted(3, 2, 3).double(), torch.randn(2, 3, 100).double(), tmp_path / "m.onnx", reference=True)
    assert told.difference < 1e-12 and "Skipping" not in caplog.text


def test_a_table_keeps_its_rows(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    (tmp_path / "t.csv").write_text("model,input,nodes\ntest_vim,64x64,12345\n")
    told = ["--all", "test_vi?", "--output", str(tmp_path / "t.md")]
    assert main(told) == 0 and capsys.readouterr().out == ""
    assert "| `test_vim` | 64x64 | 12345 |" in (tmp_path / "t.md").read_text()


@pytest.mark.slow
def test_a_table_of_classifiers_and_dense_models(tmp_path, capsys):
    told = ["--all", "test_vssd", "test_eamamba", "--img-size", "32", "48", "--output", str(tmp_path / "t.md")]
    assert main(told) == 0, capsys.readouterr()
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [(row["model"], row["input"]) for row in rows] == [("test_eamamba", "32x48"), ("test_vssd", "32x48")]
    assert not any(row["note"] for row in rows)
    for row in rows:
        assert max(float(row["difference"]), float(row["difference_second"])) < 1e-4
        assert float(row["difference_float16"]) < 3e-2 and float(row["eager_ms"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vm_unet", "test_mambair", "test_mambairv2"])
def test_dense_models_export(name, tmp_path, capsys):
    assert main(["--model", name, "--img-size", "32", "--output", str(tmp_path / "m.onnx")]) == 0, capsys.readouterr()


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (["--model", "test_vim", "--output", "m.ts"], "TorchScript"),
        (["--model", "test_vim", "--output", "m.bin"], "--output ends in .pt2, .onnx"),
        (["--model", "test_vmi", "--output", "m.onnx"], "there is no model 'test_vmi'; did you mean"),
        (["--output", "m.onnx"], "neither --model nor --checkpoint"),
        (["--model", "test_vim", "--standalone", "--output", "m.onnx"], "--standalone is for .pt2"),
        (["--model", "test_vim", "--push", "a/b", "--output", "m.onnx"], "--push uploads a folder"),
        (["--model", "test_vim", "--img-size", "1", "2", "3", "--output", "m.onnx"], "1 or 2 numbers"),
        (["--model", "test_vmamba", "--img-size", "0", "--output", "m.onnx"], "at least 1"),
        (["--model", "test_vmamba", "--tolerance", "0", "--output", "m.onnx"], "above 0"),
        (
            ["--model", "test_vmamba", "--dynamic-size", "--img-size", "96", "--output", "m.pt2"],
            "become part of the program",
        ),
        (["--all", "nothing*", "--output", "m.md"], "no model of this package matches"),
        (["--all", "test_vim", "--img-size", "0", "--output", "m.md"], "at least 1"),
        (["--all", "test_vim", "--half", "--output", "m.md"], "leave out --half"),
    ],
)
def test_bad_input_ends_in_a_sentence(told, sentence, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(told) == 2
    error = capsys.readouterr().err
    assert error.startswith("export: ") and sentence in error and error.count("\n") == 1
