"""One name, one meaning, one default: over the parsers of all commands."""

from pathlib import Path

import pytest

from visionssm import checkpoints
from visionssm.commands import _parsers, _vocabulary

ROOT = Path(__file__).parents[2]


# words that are no options anywhere: several files or runs, a name to look up, timm's own place for the data
POSITIONALS = {"images", "runs", "name", "pattern", "data"}


@pytest.fixture(scope="module")
def every():
    """The parsers of all commands; to make them needs nothing but visionssm."""
    return _parsers.parsers()


@pytest.fixture(scope="module")
def shared():
    return _parsers.shared_options()


def test_a_shared_option_means_the_same_everywhere(shared):
    assert {"--device", "--checkpoint", "--model", "--img-size", "--results-file"} <= set(shared)
    assert {"memory", "flops", "export", "benchmark", "train"} <= set(shared["--model"])
    assert {"openmmlab-train", "openmmlab-test", "train"} <= set(shared["--data-dir"]) & set(shared["--output"])
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


def test_no_second_name_for_one_thing(every):
    options = {o.lstrip("-") for parser in every.values() for a in parser._actions for o in a.option_strings}
    for name, parser in every.items():
        shown = [a for a in parser._actions if a.help != "==SUPPRESS=="]
        taken = {o for a in shown for o in a.option_strings}
        assert not taken & set(_vocabulary.FORMER), name
        assert {"--debug", "--import", "--quiet"} <= taken, name
        words = {a.dest for a in shown if not a.option_strings}
        assert words <= POSITIONALS and not words & options, f"{name}: {words} are options elsewhere"
        assert not (set(parser.former) & taken) and set(parser.former_positionals) <= taken, name


@pytest.mark.parametrize(
    "command, former, today",
    [
        ("flops", "a b --modules 2", "--model a b --modules 2"),
        ("export", "--output x.onnx a", "--model a --output x.onnx"),
        ("memory", "--precision float16 a", "--model a --amp --amp-dtype float16"),
        ("memory", "--precision float32", ""),
        ("openmmlab-train", "c.py --work-dir w --resume", "--config c.py --output w --resume"),
        ("openmmlab-test", "c.py --work-dir=w k.pth", "--config c.py --checkpoint k.pth --output w"),
        ("openmmlab-test", "--data-root d --config c.py k.pth", "--config c.py --checkpoint k.pth --data-dir d"),
        ("convert", "c.py a.pth b.pth", "--config c.py --checkpoint a.pth --output b.pth"),
        ("consolidate", "run file.pth", "--checkpoint run --output file.pth"),
        ("shards", "a b", "--data-dir a --output b"),
        ("shards", "--verify a --source b", "--verify a --data-dir b"),
        ("visualize erf", "--images 3 --data-dir a -o b.png", "--samples 3 --data-dir a -o b.png"),
    ],
)
def test_former_spellings_mean_the_same_and_say_so(every, capsys, command, former, today):
    parser = every[command]
    before = vars(parser.parse_args(former.split()))
    said = capsys.readouterr().err
    assert "now" in said and "False" not in said
    assert vars(parser.parse_args(today.split())) == before
    assert capsys.readouterr().err == ""


def test_a_word_too_many_is_refused(every, capsys):
    with pytest.raises(SystemExit):
        every["export"].parse_args(["--model", "a", "b", "--output", "x.onnx"])
    assert "unrecognized arguments: b" in capsys.readouterr().err


def test_weights_are_those_of_checkpoints():
    assert _vocabulary.WEIGHTS == checkpoints.WEIGHTS


def test_the_documents_table_is_that_of_today():
    path = ROOT / "docs" / "options.md"
    assert path.read_text() == _parsers.with_table(path.read_text()), "python -m visionssm.commands._parsers"
