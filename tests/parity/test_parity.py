"""Every recorded case of every family, at the tolerances of tolerances.py."""

import json

import pytest

from . import DATA, cases, compare, families, operators


def _is_slow(case) -> bool:
    return case.full_size and case.name not in getattr(families()[case.family], "FAST", ())


def _is_defective(case) -> bool:
    return case.name in getattr(families()[case.family], "DEFECTIVE", {})


def _params(selected):
    return [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if _is_slow(c) else []) for c in selected]


@pytest.mark.parametrize("case", _params(c for c in cases().values() if not _is_defective(c)))
def test_matches_the_original(case):
    deviations = list(compare(case))
    assert deviations
    assert not [d for d in deviations if not d.ok]


_DEFECTIVE = _params(c for c in cases().values() if _is_defective(c))


@pytest.mark.skipif(not _DEFECTIVE, reason="no family declares a case recorded with a defect")
@pytest.mark.parametrize("case", _DEFECTIVE)
def test_differs_from_a_defect_of_the_original(case):
    assert [d for d in compare(case) if not d.ok]


@pytest.mark.parametrize("name", operators())
def test_operator_matches_the_original(name):
    record = json.loads((DATA / "ops" / f"{name}.json").read_text())
    deviations = list(families()[operators()[name]].OPERATORS[name](record))
    assert deviations
    assert not [d for d in deviations if not d.ok]


# tables of a family without a model here; tests/scans compares them
_TABLES_ONLY = {"efficientvmamba-es2d_order"}


def test_every_record_is_claimed():
    recorded = {p.stem for p in (DATA / "goldens").glob("*.json")}
    assert recorded == set(cases())
    assert {p.stem for p in (DATA / "ops").glob("*.json")} - _TABLES_ONLY == set(operators())
