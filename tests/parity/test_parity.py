"""Every recorded case of every family, at the tolerances of tolerances.py."""

import pytest
import torch

from visionssm.ops import backend_unavailable

from . import DATA, cases, compare, compare_recorded_operator, families, operators, unclaimed, use_records


def _is_slow(case) -> bool:
    return case.full_size and case.name not in getattr(families()[case.family], "FAST", ())


def _is_defective(case) -> bool:
    return case.name in getattr(families()[case.family], "DEFECTIVE", {})


def _params(selected):
    return [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if _is_slow(c) else []) for c in selected]


# where there is a library, the portable scan is left to the slow tier
_missing = backend_unavailable("native", "cpu")
_BACKENDS = [
    pytest.param("native", marks=pytest.mark.skipif(_missing is not None, reason=f"native: {_missing}")),
    pytest.param("portable", marks=[pytest.mark.slow] if _missing is None else []),
]


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("case", _params(c for c in cases().values() if not _is_defective(c)))
def test_matches_the_original(case, backend, monkeypatch):
    if getattr(families()[case.family], "DTYPE", torch.float32) == torch.float64:
        backend = "portable"  # the only one that takes it
    monkeypatch.setenv("VISIONSSM_BACKEND", backend)
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
    deviations = list(compare_recorded_operator(name))
    assert deviations
    assert not [d for d in deviations if not d.ok]


# tables of a family without a model here; tests/scans compares them
_TABLES_ONLY = {"efficientvmamba-es2d_order"}


def test_every_record_is_claimed():
    assert set(unclaimed()) <= _TABLES_ONLY


def test_records_of_another_folder(tmp_path):
    (tmp_path / "goldens").mkdir()
    (tmp_path / "ops").mkdir()
    for part, name, other in (
        ("goldens", "vim_custom_a", "vim_custom_zz"),
        ("ops", "plainmamba-mixer-4x6", "other-thing"),
    ):
        (tmp_path / part / f"{other}.json").write_text((DATA / part / f"{name}.json").read_text())
    try:
        use_records(tmp_path)
        assert set(cases()) == {"vim_custom_zz"} and not operators() and unclaimed() == ["other-thing"]
        assert all(d.ok for d in compare(cases()["vim_custom_zz"]))
        with pytest.raises(FileNotFoundError, match="no goldens/"):
            use_records(tmp_path / "goldens")
    finally:
        use_records(DATA)
