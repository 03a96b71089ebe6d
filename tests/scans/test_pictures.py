"""Pictures of scan orders, and the page that shows them."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visionssm.analysis import scan_pictures
from visionssm.commands import visualize
from visionssm.scans import list_scans, modifiers, num_routes, register_scan, registry, scan_table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [
        ("cross", 3, 5),
        ("window3", 4, 4),
        ("window3_flip", 4, 7),
        ("window7", 4, 6),
        ("atrous2", 5, 4),
        ("atrous2_flip", 3, 3),
        ("atrous3", 1, 1),
        ("hilbert", 1, 6),
        ("window3_t", 4, 7),
        ("spiral_r90", 4, 7),
    ],
)
def test_path_is_the_table_on_the_padded_map(name, height, width):
    table = scan_table(name, height, width)
    paths = np.stack(scan_pictures._paths(name, height, width))
    assert paths.shape == (*table.shape, 2)
    row, column = paths[..., 0], paths[..., 1]
    cut = np.where((row < height) & (column < width), row * width + column, -1)
    assert (cut == table.numpy()).all()
    assert len(np.unique(paths.reshape(-1, 2), axis=0)) == len(np.unique(row * 1000 + column))
    if name.startswith("window"):
        assert len(np.unique(paths[0], axis=0)) == table.shape[1]  # every zero token has its own place


def test_padding_of_unknown_shape_is_left_out(monkeypatch):
    monkeypatch.setattr(registry, "_orders", dict(registry._orders))
    register_scan("gaps", routes=1)(lambda height, width: torch.tensor([[1, -1, 0, -1, -1]]))
    paths = scan_pictures._paths("gaps", 1, 2)
    assert [path.tolist() for path in paths] == [[[0, 1], [0, 0]]]


@pytest.mark.parametrize(
    ("names", "size"),
    [
        (["raster", "atrous2"], (1, 1)),
        (["zigzag"], (1, 5)),
        (["raster+window3_flip+atrous2"], (4, 4)),
        (["hilbert"], (31, 20)),
    ],
)
def test_draws_one_panel_per_route(names, size):
    figure = scan_pictures.draw_scans(names, *size)
    panels = [panel for panel in figure.axes if panel.lines]
    assert len(panels) == sum(num_routes(name) for name in names)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=30)
    assert np.asarray(Image.open(buffer).convert("L")).std() > 5


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("raster_t", [""]),
        ("bidirectional", ["route 0", "route 1"]),
        ("hilbert+hilbert_t_flip", ["hilbert", "hilbert_t_flip"]),
        ("spiral+bidirectional_t", ["spiral", "bidirectional_t: route 1", "bidirectional_t: route 2"]),
    ],
)
def test_titles(name, titles):
    figure = scan_pictures.draw_scans([name], 3, 4)
    assert [panel.get_title() for panel in figure.axes if panel.lines] == titles


def test_zero_tokens_left_of_a_mirrored_map_are_left_out():
    (path,) = scan_pictures._paths("window2_mirror", 2, 3)
    assert path.tolist() == [[0, 2], [0, 1], [1, 2], [1, 1], [0, 0], [1, 0]]


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one name"):
        scan_pictures.draw_scans([], 4, 4)


def test_tool_writes_a_picture(tmp_path, capsys):
    file = tmp_path / "new" / "one.png"
    assert visualize.main(["scans", "--order", "spiral", "--height", "4", "--width", "5", "-o", str(file)]) == 0
    assert Image.open(file).format == "PNG"
    assert capsys.readouterr().out == f"{file}\n"
    assert [path.name for path in file.parent.iterdir()] == ["one.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--order", "spyral", "-o", "x.png"], "did you mean 'spiral'"),
        (["--order", "spiral", "-o", "x.jpg"], "ends in .png, found x.jpg"),
        (["--order", "spiral", "--height", "0", "-o", "x.png"], "at least 1 x 1 tokens, found 0 x 8"),
        (["--order", "all", "-o", "x.png"], "expected a folder, found x.png"),
    ],
)
def test_tool_refuses(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert visualize.main(["scans", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_page_names_and_shows_every_order():
    page = (ROOT / "docs" / "scans.md").read_text()
    table = page[page.index("| name | routes |") :]
    rows = dict(re.findall(r"^\| (`.*?`) \| (.*?) \|", table, re.MULTILINE))
    named = {name: routes for names, routes in rows.items() for name in re.findall("`(.*?)`", names)}
    assert set(named) == set(list_scans())
    for name, routes in named.items():
        assert num_routes(name.replace("<k>", "3")) == (9 if routes == "k * k" else int(routes))
    shown = set(re.findall(r"\]\((.*?\.png)\)", page))
    assert shown == {f"scans/{path.name}" for path in (ROOT / "docs" / "scans").glob("*.png")}
    assert shown >= {f"scans/{name.replace('<k>', '2')}.png" for name in list_scans(aliases=False)}
    composed = page[page.index("Names compose") : page.index("## Your own order")]
    assert set(re.findall(r"`(_[a-z0-9]+)`", composed)) >= {*modifiers.TURNS, modifiers.FLIP}


def test_example_of_the_page_runs(monkeypatch):
    monkeypatch.setattr(registry, "_orders", dict(registry._orders))
    page = (ROOT / "docs" / "scans.md").read_text()
    code, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)  # the other is a file of the walk that a test goes
    assert "vmamba_tiny_s1l8" in code
    variables = {"__name__": "example"}
    exec(code.replace("vmamba_tiny_s1l8", "test_vmamba"), variables)  # the small model, to be quick
    assert num_routes("my_order+my_order_flip+cross") == 6
    assert variables["model"].eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
