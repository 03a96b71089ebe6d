"""Every recorded case of every family, at the tolerances of tolerances.py."""

import fnmatch
import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from visionssm.ops import backend_unavailable

from . import (
    DATA,
    Case,
    cases,
    compare,
    compare_recorded_operator,
    compare_summary,
    defect,
    families,
    keys_of,
    not_compared,
    operators,
    registered_names,
    unclaimed,
    use_records,
)


def _is_slow(case) -> bool:
    return case.full_size and case.name not in getattr(families()[case.family], "FAST", ())


def _params(selected):
    return [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if _is_slow(c) else []) for c in selected]


# where there is a library, the portable scan is left to the slow tier
_missing = backend_unavailable("native", "cpu")
_BACKENDS = [
    pytest.param("native", marks=pytest.mark.skipif(_missing is not None, reason=f"native: {_missing}")),
    pytest.param("portable", marks=[pytest.mark.slow] if _missing is None else []),
]


@pytest.mark.parametrize("backend", _BACKENDS)
@pytest.mark.parametrize("case", _params(c for c in cases().values() if not defect(c)))
def test_matches_the_original(case, backend, monkeypatch):
    if getattr(families()[case.family], "DTYPE", torch.float32) == torch.float64:
        backend = "portable"  # the only one that takes it
    monkeypatch.setenv("VISIONSSM_BACKEND", backend)
    deviations = list(compare(case))
    assert deviations
    assert not [d for d in deviations if not d.ok]


_DEFECTIVE = _params(c for c in cases().values() if defect(c))


@pytest.mark.skipif(not _DEFECTIVE, reason="no family declares a case recorded with a defect")
@pytest.mark.parametrize("case", _DEFECTIVE)
def test_differs_from_a_defect_of_the_original(case):
    assert [d for d in compare(case) if not d.ok]


@pytest.mark.parametrize("name", operators())
def test_operator_matches_the_original(name):
    deviations = list(compare_recorded_operator(name))
    assert deviations
    assert not [d for d in deviations if not d.ok]


def _dense_variants():
    """Published variants without a name in timm's registry, and the family that answers for each."""
    for path in sorted((DATA / "keys").glob("*.json")):
        for family, module in families().items():
            named = path.stem in registered_names() or family == "efficientvim"
            if not named and any(fnmatch.fnmatch(f"{path.stem}_", p) for p in getattr(module, "RECORDS", ())):
                yield pytest.param(family, path.stem, id=path.stem)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "variant"), list(_dense_variants()))
def test_a_record_of_a_published_size_needs_no_config(family, variant):
    case = Case(variant, family, {"variant": variant, "input_shape": [1, 3, 64, 64], "seed": 0})
    with torch.device("meta"):
        model = families()[family].build(case)
    source = {name: torch.empty(shape, device="meta") for name, shape in case.keys}
    source |= {name: source[first] for name, first in keys_of(variant).get("aliases", {}).items()}
    found = families()[family].convert(source, model)
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_every_record_is_claimed():
    assert not unclaimed()


@pytest.mark.parametrize("case", _params(cases().values()))
def test_all_of_a_record_is_compared(case):
    assert not not_compared(case)


def _changed(value):
    """A quantity that is not what was recorded."""
    if isinstance(value, dict):
        return {key: _changed(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_changed(entry) for entry in value]
    return value + 1.0 if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        ("vim_custom_a", ["logits", "loss", "stages", "grads.param_l2", "grads.input.sample", "grads.input.mean"]),
        ("msvmamba_custom_a", ["grads.input.l2", "grads.input.std"]),
        ("vmunet_custom_a", ["outputs"]),
        ("mhsvm_unet_custom_a", ["output_before_sigmoid"]),
    ],
)
def test_a_changed_quantity_is_far(name, paths):
    case = cases()[name]
    for path in paths:
        record = json.loads(json.dumps(case.record))
        *parents, last = path.split(".")
        holder = record
        for key in parents:
            holder = holder[key]
        holder[last] = _changed(holder[last])
        assert [d for d in compare(replace(case, source=record)) if not d.ok], path


def test_nan_outside_the_sample_is_far():
    ours = torch.zeros(1000)
    recorded = {"shape": [1000], "mean": 0.0, "std": 0.0, "sample": [0.0] * 8}
    assert compare_summary("map", ours, recorded).ok
    ours[-1] = torch.nan
    assert not compare_summary("map", ours, recorded).ok


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
        (tmp_path / "ops" / "plainmamba-mixer-9x9.json").write_text(
            (DATA / "ops/plainmamba-mixer-4x6.json").read_text()
        )
        (tmp_path / "ops" / "hydra-mixer-b.json").write_text((DATA / "ops/hydra-mixer.json").read_text())
        (tmp_path / "goldens" / "vim_custom_damaged.json").write_text("{")
        use_records(tmp_path)
        assert set(operators()) == {"plainmamba-mixer-9x9", "hydra-mixer-b"}
        with pytest.raises(ValueError, match="vim_custom_damaged.json is damaged"):
            list(compare(cases()["vim_custom_damaged"]))
    finally:
        use_records(DATA)


def test_the_tool_says_what_it_did_not_compare(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("parity_tool", DATA.parents[1] / "tools" / "parity.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    (tmp_path / "goldens").mkdir()
    record = json.loads((DATA / "goldens" / "vim_custom_a.json").read_text())
    bare = {name: record[name] for name in ("variant", "config", "keys", "input_shape", "seed")}
    for name, content in {
        "vim_custom_x": record | {"attention": [1.0]},
        "vim_custom_bare": bare,
        "other_system_a": record,
    }.items():
        (tmp_path / "goldens" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "goldens" / "vim_custom_damaged.json").write_text('{"logits": [')
    try:
        assert tool.main(["--records", str(tmp_path)]) == 1
        said = capsys.readouterr().out
        assert "not compared: attention" in said
        assert "vim_custom_damaged" in said and "is damaged" in said
        assert "the record holds nothing that is compared  FAILED" in said
        assert "3 cases, 2 not as expected; 1 record(s) without a family, not compared" in said
        assert tool.main(["--records", str(tmp_path), "vim_custom_x"]) == 0
        assert tool.main(["--records", str(tmp_path), "other*"]) == 2
        assert "without a family: other_system_a" in capsys.readouterr().err
        (tmp_path / "names.json").write_text("{")
        with pytest.raises(SystemExit) as ended:
            tool.main(["--records", str(tmp_path)])
        assert ended.value.code == 2 and "names.json is damaged" in capsys.readouterr().err
    finally:
        use_records(DATA)
