"""The native wavefront scan: against the definition at the seams of vectors and segments, on every instruction set."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_wavefront_scan import assert_close, make_inputs, run

from visionssm.ops import backend_unavailable, wavefront_scan
from visionssm.ops.native import loading
from visionssm.ops.wavefront_scan.contract import Wavefront

why_not = backend_unavailable("native", "cpu")
needs_library = pytest.mark.skipif(why_not is not None, reason=f"native: {why_not}")


def random_scan(seed: int) -> Wavefront:
    """Sizes around those of vectors, groups of states and segments; any strides."""
    r = random.Random(seed)
    d, N = r.choice([1, 2, 5, 15, 16, 17, 33, 48]), r.choice([1, 2, 3, 4, 5, 16, 16, 19, 64])
    dtype = r.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    scan = make_inputs(seed, r.randint(1, 3), r.randint(1, 11), r.randint(1, 9), d, N, r.random() < 0.6, dtype)

    def strided(t, i):
        return t.transpose(i, -1).contiguous().transpose(i, -1)

    if r.random() < 0.4:
        scan = scan._replace(x=strided(scan.x, 0), delta_left=strided(scan.delta_left, 1), C=strided(scan.C, 2))
        scan = scan._replace(
            A_top=strided(scan.A_top, 0), B_top=scan.B_top.transpose(1, 2).contiguous().transpose(1, 2)
        )
    return scan


def check(scan: Wavefront, seed: int) -> None:
    """Output and gradients against the definition in float64."""
    exact = run(Wavefront._make(None if t is None else t.double() for t in scan), "reference")
    actual = run(scan, "native")
    # the weights of the output are rounded to its dtype too
    tolerance = 2e-5 if scan.x.dtype == torch.float32 else 4 * torch.finfo(scan.x.dtype).eps
    assert_close(actual, [e.to(a.dtype) for a, e in zip(actual, exact, strict=True)], tolerance)


@needs_library
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_scan_equals_the_definition(seed):
    check(random_scan(seed), seed)


@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(name):
    if why_not is not None:
        pytest.skip(f"native: {why_not}")
    try:
        loading.force_instruction_set(name)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for seed in range(10):
            check(random_scan(seed), seed)
    finally:
        loading.force_instruction_set(None)


@needs_library
def test_result_does_not_depend_on_the_threads():
    scan = make_inputs(1, b=2, H=20, W=20, d=70, N=16, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(scan, "native")
        for count in (2, 5):
            torch.set_num_threads(count)
            assert all(torch.equal(a, e) for a, e in zip(run(scan, "native"), expected, strict=True))
    finally:
        torch.set_num_threads(before)


@needs_library
def test_gradient_of_a_sum():
    """All strides of the gradient are zero."""
    scan = make_inputs(2, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in scan]
    actual = torch.autograd.grad(wavefront_scan(*leaves, backend="native").sum(), leaves)
    expected = torch.autograd.grad(wavefront_scan(*leaves, backend="reference").sum(), leaves)
    assert_close(actual, expected, 1e-5)


@needs_library
def test_not_a_number_survives():
    scan = make_inputs(3, H=6, W=7, d=18, N=16, dtype=torch.float32)
    for name, at in (("x", (0, 2, 3, 17)), ("delta_top", (0, 2, 3, 4)), ("B_left", (1, 5, 0, 3)), ("C", (0, 0, 0, 1))):
        spoilt = getattr(scan, name).clone()
        spoilt[at] = float("nan")
        spoilt = scan._replace(**{name: spoilt})
        actual = wavefront_scan(*spoilt, backend="native")
        assert torch.equal(actual.isnan(), wavefront_scan(*spoilt, backend="reference").isnan())


@needs_library
def test_large_steps_decay_to_nothing():
    scan = make_inputs(4, H=5, W=5, d=16, N=16, dtype=torch.float32)
    scan = scan._replace(delta_top=scan.delta_top * 1e4, delta_left=scan.delta_left * 1e4)
    for actual in run(scan, "native"):
        assert actual.isfinite().all()
    torch.testing.assert_close(
        wavefront_scan(*scan, backend="native"), wavefront_scan(*scan, backend="reference"), rtol=1e-5, atol=1e-2
    )
