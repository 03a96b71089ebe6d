"""The orders against the tables recorded from the original models."""

import json
from pathlib import Path

import pytest
import torch

from visionssm.scans import direction_codes, direction_table, inverse_table, scan_table

DATA = Path(__file__).parents[1] / "data" / "ops"


def load(name, key):
    cases = json.loads((DATA / f"{name}.json").read_text())[key]
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


def test_middle_class_token_of_localmamba():
    # 2 x 3 patches and a class token: 7 tokens, the class token is number 3 and stands at step 3 of every route
    table = scan_table("raster+vertical_flip+window2", 2, 3, middle_token=True)
    assert table.tolist() == [
        [0, 1, 2, 3, 4, 5, 6, -1, -1],
        [6, 2, 5, 3, 1, 4, 0, -1, -1],
        [0, 1, 4, 3, 5, 2, -1, 6, -1],
    ]
    assert torch.equal(inverse_table("raster", 2, 3, middle_token=True), torch.arange(7, dtype=torch.int32)[None])
