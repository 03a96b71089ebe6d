"""The orders against the tables recorded from the original models."""

import json
from pathlib import Path

import pytest
import torch

from visionssm.scans import direction_codes, direction_table, inverse_table, scan_table

DATA = Path(__file__).parents[1] / "data" / "ops"
SCANS = DATA.parent / "scans"


def load(name, key, folder=DATA):
    cases = json.loads((folder / f"{name}.json").read_text())[key]
    return [pytest.param(case, id="x".join(map(str, case.get("hw") or (case["H"], case["W"])))) for case in cases]


@pytest.mark.parametrize("case", load("vmamba-cross_scan", "tables"))
def test_vmamba(case):
    assert scan_table("cross", case["H"], case["W"]).tolist() == case["routes"]


@pytest.mark.parametrize("case", load("plainmamba-scan_orders", "tables"))
def test_plainmamba(case):
    height, width = case["hw"]
    table = scan_table("snake", height, width)
    assert table.tolist() == case["orders"]
    assert inverse_table("snake", height, width).tolist() == case["inverse"]
    assert direction_table("snake", height, width).tolist() == case["directions"]
    assert direction_codes(table, width).tolist() == case["directions"]


LOCAL_NAMES = {"h": "raster", "v": "vertical", "w2": "window2", "w7": "local7"}


@pytest.mark.parametrize("case", load("localmamba-scan_orders", "tables"))
def test_localmamba(case):
    height, width = case["hw"]
    for original, expected in case["scan"].items():
        base = original.removesuffix("_flip")
        name = LOCAL_NAMES[base] + original.removeprefix(base)
        assert scan_table(name, height, width)[0].tolist() == expected, original
        inverse = inverse_table(name, height, width)[0].tolist()
        # the original does not invert columns of a rectangle
        wrong = base == "v" and height != width
        assert (inverse != case["reverse"][original]) == wrong, original


@pytest.mark.parametrize("case", load("efficientvmamba-es2d_order", "cases"))
def test_efficientvmamba(case):
    assert scan_table(f"atrous{case['step']}", case["H"], case["W"]).tolist() == case["orders"]


def foreign(system):
    """Recorded tables of a system whose models are not here: (height, width, tables)."""
    grids = json.loads((SCANS / "foreign_scans.json").read_text())[system]["grids"]
    for size, tables in grids.items():
        sides = [int(side) for side in size.split("x")]
        yield sides[0], (sides + sides)[1], tables


EIGHT = "{s}+{s}_t+{s}_r90+{s}_mirror+{s}_flip+{s}_t_flip+{s}_r90_flip+{s}_mirror_flip"
MAMBAAD = dict(sweep="raster", scan="snake[0]", zorder="zorder", zigzag="zigzag[0]", hilbert="hilbert")


@pytest.mark.parametrize("kind", MAMBAAD)
def test_mambaad(kind):
    grids = json.loads((SCANS / "mambaad_routes.json").read_text())["grids"]
    assert set(grids) == {"2", "4", "8"}
    for side, tables in grids.items():
        assert scan_table(EIGHT.format(s=MAMBAAD[kind]), int(side), int(side)).tolist() == tables[kind], side


ZIGMA = "snake[0]+snake[2]+snake[0]_mirror+snake[2]_mirror+snake[0]_updown+snake[2]_updown+snake[0]_r180+snake[2]_r180"


def test_zigma():
    for height, width, tables in foreign("zigma_zigzag"):
        assert scan_table(ZIGMA, height, width).tolist() == tables


ZIGMA_HILBERT = "hilbert_t+hilbert+hilbert_updown+hilbert_r90+hilbert_r180_t+hilbert_r180+hilbert_mirror+hilbert_r270"


def test_zigma_hilbert_is_the_inverse_of_the_curve():
    for height, width, tables in foreign("zigma_hilbert"):
        assert inverse_table(ZIGMA_HILBERT, height, width).tolist() == tables
        assert scan_table(ZIGMA_HILBERT, height, width).tolist() != tables


@pytest.mark.parametrize("base", ["diagonal", "zigzag"])
def test_eamamba(base):
    for height, width, tables in foreign("eamamba"):
        name = f"zigzag[{height % 2}]" if base == "zigzag" else base
        names = f"{name}+{name}_r180+{name}_mirror+{name}_updown+raster+raster_flip+vertical+vertical_flip"
        assert scan_table(names, height, width).tolist() == tables[base], (height, width)


def test_eamambas_hilbert_on_a_power_of_two():
    ((_, _, tables),) = (grid for grid in foreign("eamamba") if grid[:2] == (4, 4))
    names = "hilbert_t+hilbert_r180_t+hilbert_mirror_t+hilbert_updown_t"
    assert scan_table(names, 4, 4).tolist() == tables["hilbert"][:4]


@pytest.mark.parametrize(
    ("name", "original"),
    [("gray", "xy"), ("gray_t", "yx"), ("gray_r180", "xy_inverse"), ("gray_t_r180", "yx_inverse")],
)
def test_occmamba(name, original):
    grids = json.loads((SCANS / "foreign_scans.json").read_text())["occmamba"]["grids"]
    for size, tables in grids.items():
        x, y, z = (int(side) for side in size.split("x"))
        cells = torch.tensor(tables[original]).view(x * y, z)
        assert torch.equal(cells % z, torch.arange(z).expand(x * y, z))  # the heights of a cell follow each other
        assert scan_table(name, x, y)[0].tolist() == (cells[:, 0] // z).tolist(), size


MHSVM = dict(
    C=("snake[0]", "snake[2]"),
    X=("zigzag[0]", "zigzag[0]_mirror"),
    S=("spiral", "spiral_updown"),
    Z=("raster", "vertical"),
)


def test_mhsvm():
    record = json.loads((SCANS / "mhsvm-routes.json").read_text())
    for size, tables in record["grids"].items():
        height, width = (int(side) for side in size.split("x"))
        for pattern, names in MHSVM.items():
            expected = [tables[f"{pattern}0"], tables[f"{pattern}1"]]
            assert scan_table("+".join(names), height, width).tolist() == expected, (size, pattern)
    for size, expected in record["diagonal_other_sense"].items():
        height, width = (int(side) for side in size.split("x"))
        assert scan_table("zigzag[1]", height, width).tolist() == [expected]


@pytest.mark.parametrize("case", load("msvmamba-ms2d_order", "cases", SCANS))
def test_msvmamba(case):
    assert scan_table("raster", case["H"], case["W"]).tolist() == [case["full"]]
    assert scan_table("ms2d_low", case["low_H"], case["low_W"]).tolist() == [case["low"]]


def test_middle_class_token_of_localmamba():
    # 2 x 3 patches and a class token: 7 tokens, the class token is number 3 and stands at step 3 of every route
    table = scan_table("raster+vertical_flip+window2", 2, 3, middle_token=True)
    assert table.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, -1, -1],
        [6, 2, 5, 3, 1, 4, 0, -1, -1],
        [0, 1, 4, 3, 5, 2, -1, 6, -1],
    ]
    assert torch.equal(inverse_table("raster", 2, 3, middle_token=True), torch.arange(7, dtype=torch.int32)[None])
