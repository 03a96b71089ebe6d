"""The pictures' commands, what they measure, and what they say to bad input."""

import csv

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from visionssm.analysis.activations import activation_statistics, first_nonfinite
from visionssm.analysis.feature_pictures import principal_components
from visionssm.analysis.hidden_attention import hidden_attention, token_attention
from visionssm.analysis.token_dynamics import spectrum, token_dynamics
from visionssm.commands.visualize import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("images")
    (place / "validation").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "validation" / f"{i}.png")
    (place / "broken.png").write_bytes(b"no image")
    return place


@pytest.mark.parametrize(
    "told",
    [
        ["erf", "--model", "test_vmamba", "test_vim", "resnet10t", "--img-size", "64", "--samples", "2"],
        ["attention", "IMAGE", "--model", "test_vmamba", "--img-size", "32", "--token", "0", "0"],
        ["attention", "IMAGE", "--model", "test_vim", "--img-size", "32", "--unified", "--route", "1"],
        ["contributions", "IMAGE", "--model", "test_vim", "--img-size", "32", "--layer", "blocks.1"],
        ["contributions", "IMAGE", "--model", "test_vmamba", "--img-size", "32", "--token", "0", "0"],
        ["relevance", "IMAGE", "--model", "test_vmamba", "--img-size", "32", "--num-classes", "5", "--class", "3"],
        ["features", "IMAGE", "--model", "test_vmamba", "--img-size", "64", "--level", "0", "-1"],
        ["activations", "IMAGE", "--model", "test_vmamba", "--img-size", "32"],
        ["dynamics", "IMAGE", "--model", "test_vim", "--img-size", "32"],
        ["scans", "--model", "test_localvim"],
    ],
    ids=lambda told: "-".join(told[:4:3]),
)
def test_every_command_writes_a_picture(told, folder, tmp_path, capsys):
    told = [str(folder / "validation" / "0.png") if word == "IMAGE" else word for word in told]
    data = ["--data-dir", str(folder)] if told[0] == "erf" else []
    path = tmp_path / "picture.png"
    assert main([*told, *data, "-o", str(path)]) == 0, capsys.readouterr().err
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert pixels.std() > 5 and [p.name for p in tmp_path.iterdir()] == ["picture.png"]


def test_the_table_of_receptive_fields(folder, tmp_path, capsys):
    told = ["erf", "--model", "test_vmamba", "--img-size", "48", "--samples", "2", "--data-dir", str(folder)]
    assert main([*told, "-o", str(tmp_path / "erf.png")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0] == "| model | pixels | 20% | 30% | 50% | 90% | 99% |"
    assert lines[2].startswith("| test_vmamba, random weights | 48 x 48 | ") and " px, " in lines[2]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (["attention", "IMAGE", "--model", "test_vim", "--layer", "blocks.9.mixer"], "did you mean 'blocks."),
        (["attention", "IMAGE", "--model", "test_vim", "--route", "2"], "has routes 0 to 1"),
        (["attention", "IMAGE", "--model", "test_vim", "--token", "4", "9"], "token 4 9 does not exist"),
        (["attention", "IMAGE", "--model", "test_vim", "--token", "left"], "a row and a column, or: class"),
        (["attention", "IMAGE", "--model", "test_vmamba", "--token", "class"], "has no class token"),
        (["attention", "IMAGE", "--model", "test_vmamba", "--unified"], "Mamba's mixers"),
        (["attention", "IMAGE", "--model", "test_vssd"], "has no layer with a selective scan"),
        (["contributions", "IMAGE", "--model", "test_vim", "--layer", "blocks.7"], "did you mean 'blocks."),
        (["contributions", "IMAGE", "--model", "test_grootv"], "no contributions are defined"),
        (["relevance", "IMAGE", "--model", "test_vim", "--class", "1000"], "has classes 0 to 999"),
        (["relevance", "IMAGE", "--model", "test_vim", "--class", "gold fish"], "did you mean"),
        (["relevance", "IMAGE", "--model", "test_grootv"], "has no rule for"),
        (["features", "IMAGE", "--model", "test_vmamba", "--level", "7"], "has levels 0 to 3"),
        (["dynamics", "IMAGE", "--model", "test_vssd"], "no block whose mixer scans"),
        (["dynamics", "BROKEN", "--model", "test_vim"], "broken.png"),
        (["dynamics", "absent.png", "--model", "test_vim"], "absent.png does not exist"),
        (["dynamics", "IMAGE", "--model", "test_vmi"], "there is no model 'test_vmi'"),
        (["dynamics", "IMAGE"], "neither --model nor --checkpoint"),
        (["erf", "--data-dir", "."], "neither --model nor --checkpoint"),
        (["erf", "--data-dir", "absent", "--model", "test_vim"], "absent does not exist"),
        (["scans", "--model", "test_vssd"], "names a scan order"),
    ],
)
def test_bad_input_ends_in_a_sentence(told, sentence, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"IMAGE": folder / "validation" / "0.png", "BROKEN": folder / "broken.png"}
    assert main([*(str(places.get(word, word)) for word in told), "-o", "picture.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("visualize: ") and sentence in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unified", [False, True])
def test_a_row_is_that_of_the_matrix(unified):
    torch.manual_seed(0)
    vim = timm.create_model("test_vim").eval()
    mixer, x = vim.blocks[0].mixer, torch.randn(2, 9, 32)
    x = torch.randn(2, 9, mixer.in_proj.in_features)
    with torch.no_grad():
        matrix = hidden_attention(mixer, x, 2, 4, with_conv=unified, with_gate=unified)
    for route, expected in ((0, matrix[:, 0]), (1, matrix[:, 1]), (None, matrix.sum(1))):
        row = token_attention(mixer, x, 2, 4, token=5, route=route, unified=unified)
        torch.testing.assert_close(row, expected[:, :, 5], atol=1e-6, rtol=1e-4)


def test_a_row_of_a_map_is_that_of_the_matrix():
    mixer = timm.create_model("test_vmamba").eval().stages[0].blocks[0].mixer
    x = torch.randn(2, 3, 4, 20)
    row = token_attention(mixer, x, token=7)
    torch.testing.assert_close(row, hidden_attention(mixer, x).sum(1)[:, :, 7], atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="token must be from 0 to 11"):
        token_attention(mixer, x, token=12)


def test_a_compiled_layer_is_unwrapped():
    mixer, x = timm.create_model("test_vmamba").eval().stages[0].blocks[0].mixer, torch.randn(1, 3, 4, 20)
    compiled = torch.compile(mixer, backend="eager")
    assert torch.equal(token_attention(compiled, x, token=7), token_attention(mixer, x, token=7))


def test_eigenvalues_are_those_of_the_whole_matrix():
    torch.manual_seed(0)
    b, c = torch.randn(3, 20, dtype=torch.float64), torch.randn(3, 20, dtype=torch.float64)
    mu = c.T @ b
    values = np.linalg.eigvalsh(((mu + mu.T) / 2).numpy())
    found = spectrum(b, c)
    assert (found.largest, found.smallest) == pytest.approx((values.max(), values.min()))
    assert (found.positive, found.negative) == ((values > 1e-9).sum(), (values < -1e-9).sum()) == (3, 3)
    assert spectrum(b, b).negative == 0 and spectrum(b, -b).positive == 0  # all tokens grow; all shrink


def test_norms_stay_where_the_mixers_put_out_nothing():
    model = timm.create_model("test_vim").train()
    for block in model.blocks:
        nn.init.zeros_(block.mixer.out_proj.weight)
    layers = token_dynamics(model, torch.randn(2, 3, 32, 32))
    assert model.training and len(layers) == len(model.blocks)
    assert all(layer.before == layer.after == layers[0].before for layer in layers)
    assert layers[0].rank_correlation is None and layers[1].rank_correlation == pytest.approx(1)
    assert all(len(layer.routes) == 2 for layer in layers)


def test_where_nan_begins(folder, tmp_path, capsys):
    model = timm.create_model("test_vmamba")
    images = torch.randn(1, 3, 32, 32)
    assert first_nonfinite(activation_statistics(model, images)) is None
    layer = model.stages[1].blocks[0].mlp.fc1
    nn.init.constant_(layer.bias, float("inf"))
    statistics = activation_statistics(model, images)
    assert first_nonfinite(statistics).name == "stages.1.blocks.0.mlp.fc1" and statistics[-1].name == "(model)"
    table = tmp_path / "layers.csv"
    told = [
        "activations",
        str(folder / "validation"),
        "--model",
        "test_vmamba",
        "--img-size",
        "32",
        "--results-file",
        str(table),
    ]
    assert main([*told, "-o", str(tmp_path / "a.png")]) == 0
    assert "every output is finite" in capsys.readouterr().out
    with open(table) as file:
        assert list(csv.DictReader(file))[-1]["name"] == "(model)"


def test_principal_components_of_planes():
    h, w = 5, 6
    ramp = torch.linspace(-1, 1, h * w).view(h, w)
    features = torch.stack([3 * ramp, torch.ones(h, w), -0.5 * ramp.flip(0)])
    maps, shares = principal_components(features)
    assert maps.shape == (3, h, w) and shares.sum() == pytest.approx(1) and shares[0] > 0.9
    assert torch.corrcoef(torch.stack([maps[0].flatten(), ramp.flatten()]))[0, 1] > 0.99
    assert torch.equal(principal_components(torch.ones(2, 3, 3))[0], torch.full((3, 3, 3), 0.5))
