"""The generated tables of the documents are what the registry says."""

import json
import re
import runpy
from pathlib import Path

import pytest

from tests.families import FAMILIES, published

ROOT = Path(__file__).resolve().parents[2]


def model_cards(*arguments):
    return runpy.run_path(str(ROOT / "tools" / "model_cards.py"))["main"](["--check", *arguments])


def test_families_and_recipes_are_up_to_date(capsys):
    assert model_cards("--only", "families", "recipes") == 0, capsys.readouterr()


@pytest.mark.slow
def test_measured_tables_are_up_to_date(capsys):
    assert model_cards() == 0, capsys.readouterr()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_is_in_its_card_and_in_the_readme(family):
    for document in (ROOT / "README.md", ROOT / "model_cards" / f"{family}.md"):
        rows = re.findall(r"^\| \[?`(\w+)`", document.read_text(), re.MULTILINE)
        assert set(published(family)) <= set(rows), document.name


def test_figures_of_unknown_variants_are_refused(tmp_path, monkeypatch):
    tool = runpy.run_path(str(ROOT / "tools" / "model_cards.py"))
    for path in (ROOT / "model_cards").glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    data = json.loads((tmp_path / f"{FAMILIES[0]}.json").read_text())
    data["variants"]["absent_tiny"] = {}
    (tmp_path / f"{FAMILIES[0]}.json").write_text(json.dumps(data))
    monkeypatch.setitem(tool["read_families"].__globals__, "CARDS", tmp_path)
    with pytest.raises(ValueError, match=r"disagree about \['absent_tiny'\]"):
        tool["read_families"]()
