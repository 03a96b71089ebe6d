"""fvcore's and mmengine's counters count the scan as ours does."""

import pytest
import timm
import torch

import visionssm  # noqa: F401  registers the models
from visionssm.analysis import jit_counters
from visionssm.analysis.flops import count
from visionssm.analysis.scan_calls import ScanCalls
from visionssm.ops import selective_scan
from visionssm.ops.selective_scan.flops import selective_scan_flops

COUNTERS = {"fvcore": ("fvcore.nn", "FlopCountAnalysis"), "mmengine": ("mmengine.analysis", "FlopAnalyzer")}


def expected(model, images):
    """Multiply-adds of the model's scans, from what the public function was given."""
    with torch.no_grad(), ScanCalls() as seen:
        model(images)
    total = 0
    for call in seen.calls:
        if call.function is selective_scan:
            (k, T), (d, N) = call.arguments["order"].shape, call.arguments["A"].shape[-2:]
            weight = call.arguments["dt_weight"]
            total += selective_scan_flops(len(images), T, k, d, N, 0 if weight is None else weight.shape[-1]) // 2
    return total


@pytest.mark.parametrize("library", COUNTERS)
@pytest.mark.parametrize("name", ["test_vmamba", "test_vim"])
@pytest.mark.parametrize("how", ["given", "registered"])
def test_the_scan_is_counted(monkeypatch, library, name, how):
    module, counter = COUNTERS[library]
    counter = getattr(pytest.importorskip(module), counter)
    model, images = timm.create_model(name).eval(), torch.randn(2, 3, 64, 64)
    table = next(t for t in jit_counters._TABLES if t.startswith(library))
    defaults = getattr(pytest.importorskip(table), jit_counters._TABLES[table])
    monkeypatch.delitem(defaults, "visionssm::selective_scan", raising=False)
    if how == "registered":
        assert table in jit_counters.register_counters()
        analysis = counter(model, images)
    else:
        analysis = counter(model, images).set_op_handle(**jit_counters.OP_HANDLES)
    analysis.unsupported_ops_warnings(False)
    assert analysis.by_operator()["selective_scan"] == expected(model, images) > 0
    assert "visionssm::selective_scan" not in analysis.unsupported_ops()
    # they count norms too, and each its own way of a few others
    assert analysis.total() == pytest.approx(count(model, (3, 64, 64), batch=2).multiply_adds, rel=0.1)
    defaults.pop("visionssm::selective_scan", None)  # monkeypatch puts back what was there before


def test_a_table_that_moved_is_named(monkeypatch):
    monkeypatch.setattr(jit_counters, "_TABLES", {"json": "_TABLE"})
    with pytest.raises(ImportError, match="json has no table _TABLE in this version; give OP_HANDLES"):
        jit_counters.register_counters()
