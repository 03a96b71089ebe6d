"""Every recorded case of every family on the GPU, forward and backward, at the tolerances of the CPU's tests."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import parity  # noqa: E402


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


# the cases ending in -backbone apply a recorded norm to the stages on the CPU
CASES = [c for c in parity.cases().values() if not parity.defect(c) and not parity.is_dense(c)]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_matches_the_original(case, monkeypatch):
    module = parity.families()[case.family]
    build, convert, outputs = module.build, module.convert, module.outputs
    monkeypatch.setattr(module, "build", lambda c: build(c).cuda())
    monkeypatch.setattr(module, "convert", lambda s, m: {k: v.cuda() for k, v in convert(s, m).items()})
    monkeypatch.setattr(module, "outputs", lambda m, x, c: {k: v.cpu() for k, v in outputs(m, x.cuda(), c).items()})
    deviations = list(parity.compare(case))
    assert deviations
    assert not [d for d in deviations if not d.ok]
