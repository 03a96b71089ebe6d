"""One name, one meaning, one default: over the parsers of all commands."""

from pathlib import Path

import pytest

from visionssm import checkpoints
from visionssm.commands import _parsers, _vocabulary

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared():
    """Options of several commands; mmdet's and mmseg's speak the language of mmengine."""
    pytest.importorskip("mmengine", reason="the commands of detection need mmengine")
    found = _parsers.shared_options()
    ours = {option: {n: a for n, a in by.items() if not n.startswith("openmmlab")} for option, by in found.items()}
    return {option: by for option, by in ours.items() if len(by) > 1}


def test_a_shared_option_means_the_same_everywhere(shared):
    assert {"--device", "--checkpoint", "--model", "--img-size", "--results-file"} <= set(shared)
    for option, by in shared.items():
        one = {name: a for name, a in by.items() if a.nargs not in ("+", "*")}
        if option not in ("--output", "--config"):  # a file or a folder; a recipe or a config
            written = {name: a.metavar for name, a in by.items() if not a.choices}
            assert len(set(written.values())) <= 1, f"{option} is written as {written}"
        kinds = {name: getattr(a.type, "__name__", "").partition(" ")[0] for name, a in one.items()}
        assert len(set(kinds.values()) - {"Path", ""}) <= 1, f"{option} is read as {kinds}"
        if option.removeprefix("--") in _vocabulary.OWN_DEFAULTS:
            continue
        defaults = {name: repr(a.default) for name, a in one.items()}
        assert len(set(defaults.values())) <= 1, f"{option} has the defaults {defaults}"


def test_no_second_name_for_one_thing():
    for name, parser in _parsers.parsers().items():
        taken = {o for a in parser._actions if a.help != "==SUPPRESS==" for o in a.option_strings}
        assert not taken & set(_vocabulary.FORMER), name
        assert "--debug" not in taken or "--import" in taken, name


def test_weights_are_those_of_checkpoints():
    assert _vocabulary.WEIGHTS == checkpoints.WEIGHTS


@pytest.mark.slow
def test_the_documents_table_is_that_of_today():
    path = ROOT / "docs" / "options.md"
    assert path.read_text() == _parsers.with_table(path.read_text()), "python -m visionssm.commands._parsers"
