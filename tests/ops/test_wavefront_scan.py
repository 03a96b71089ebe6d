"""The two-dimensional recurrence: every backend against its definition cell by cell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops import backend_unavailable, wavefront_scan
from visionssm.ops.wavefront_scan import backends, portable
from visionssm.ops.wavefront_scan.backend import Backend
from visionssm.ops.wavefront_scan.contract import Wavefront
from visionssm.ops.wavefront_scan.unrolled import wavefront_scan_unrolled

no_library = backend_unavailable("native", "cpu")
NATIVE = pytest.param("native", marks=pytest.mark.skipif(no_library is not None, reason=f"native: {no_library}"))


def make_inputs(seed=0, b=2, H=3, W=4, d=3, N=2, with_D=True, dtype=torch.float64) -> Wavefront:
    g = torch.Generator().manual_seed(seed)
    state = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    x, delta_top, delta_left = normal(b, H, W, d), normal(b, H, W, d).exp() / 2, normal(b, H, W, d).exp() / 2
    A = (-normal(d, N).exp() for _ in range(2))
    maps = (normal(b, H, W, N) for _ in range(3))
    D = normal(d).to(state) if with_D else None
    tokens = (t.to(dtype) for t in (x, delta_top, delta_left))
    return Wavefront._make([*tokens, *(t.to(state) for t in A), *(t.to(dtype) for t in maps), D])


def run(scan, backend):
    """Output and gradients of a random weighting of it."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in scan]
    y = wavefront_scan(*leaves, backend=backend)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(y.dtype)
    leaves = [t for t in leaves if t is not None]
    return [y.detach(), *torch.autograd.grad((y * weight).sum(), leaves, materialize_grads=True)]


def assert_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        error = (a.double() - e.double()).abs().max().item()
        assert error <= tolerance * max(1.0, e.double().abs().max().item())


cases = dict(
    seed=st.integers(0, 2**20),
    b=st.integers(1, 3),
    H=st.integers(1, 9),
    W=st.integers(1, 9),
    d=st.sampled_from([1, 2, 5]),
    N=st.sampled_from([1, 2, 16]),
    with_D=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(**cases)
def test_portable_equals_reference_in_float64(**case):
    scan = make_inputs(**case)
    assert_close(run(scan, "portable"), run(scan, "reference"), 1e-11)


@settings(max_examples=30, deadline=None)
@given(**cases)
def test_exporters_program_equals_reference(**case):
    scan = make_inputs(**case)
    torch.testing.assert_close(wavefront_scan_unrolled(scan), wavefront_scan(*scan, backend="reference"))


@pytest.mark.parametrize("backend", [NATIVE, "portable", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype, backend):
    scan = make_inputs(1, H=5, W=7, N=16, dtype=dtype)
    exact = run(Wavefront(*(t.double() for t in scan)), "reference")
    exact = [e.to(t.dtype) for e, t in zip(exact, [scan.x, *scan], strict=True)]
    tolerance = 3e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    assert_close(run(scan, backend), exact, tolerance)


def test_borders_and_corner():
    scan = make_inputs(2, b=1, H=2, W=2, d=1, N=1, with_D=False)
    x, delta_top, delta_left, B_top, B_left, C = (
        t[0, :, :, 0] for t in (scan.x, scan.delta_top, scan.delta_left, scan.B_top, scan.B_left, scan.C)
    )
    decay_top, decay_left = torch.exp(delta_top * scan.A_top), torch.exp(delta_left * scan.A_left)
    from_top, from_left = delta_top * B_top * x, delta_left * B_left * x
    h = torch.zeros(2, 2, dtype=torch.float64)
    h[0, 0] = from_left[0, 0]
    h[0, 1] = decay_left[0, 1] * h[0, 0] + from_left[0, 1]
    h[1, 0] = decay_top[1, 0] * h[0, 0] + from_top[1, 0]
    h[1, 1] = (decay_top[1, 1] * h[0, 1] + from_top[1, 1] + decay_left[1, 1] * h[1, 0] + from_left[1, 1]) / 2
    torch.testing.assert_close(wavefront_scan(*scan)[0, :, :, 0], C * h)


def test_non_contiguous_inputs():
    scan = make_inputs(3, H=4, W=5)
    strided = Wavefront(*(t.transpose(0, -1).contiguous().transpose(0, -1) for t in scan))
    assert_close(run(strided, "portable"), run(scan, "portable"), 1e-14)


@pytest.mark.parametrize(("H", "W"), [(1, 1), (1, 3), (3, 1), (3, 4)])
def test_gradcheck(H, W):
    leaves = [t.requires_grad_() for t in make_inputs(4, b=1, H=H, W=W, d=2)]
    assert torch.autograd.gradcheck(wavefront_scan, leaves)


# --- the choice of a backend ------------------------------------------------------------------------------------------


def test_first_that_is_meant_for_the_device_is_taken(monkeypatch):
    monkeypatch.delenv("VISIONSSM_BACKEND", raising=False)
    ran = []

    def forward(scan, save):
        ran.append("forward")
        return portable.forward(scan, save)

    def backward(grad, states, scan):
        ran.append("backward")
        return portable.backward(grad, states, scan)

    another = Backend("another", ("cpu",), lambda *_: None, forward, backward, portable.states_shape)
    monkeypatch.setattr(backends, "BACKENDS", (another, *backends.BACKENDS))
    scan = make_inputs(10)
    assert_close(run(scan, None), run(scan, "reference"), 1e-11)
    assert ran == ["forward", "backward"]
    monkeypatch.setenv("VISIONSSM_BACKEND", "portable")
    run(scan, None)
    assert ran == ["forward", "backward"]


def test_native_is_the_default_on_cpus(monkeypatch):
    monkeypatch.delenv("VISIONSSM_BACKEND", raising=False)
    chosen = backends.choose_backend(None, torch.device("cpu"), torch.float32).name
    assert chosen == ("portable" if no_library else "native")
    assert backends.choose_backend(None, torch.device("cpu"), torch.float64).name == "portable"


def test_doubles_are_refused_by_the_library():
    with pytest.raises(RuntimeError, match="native backend cannot run on cpu: .*(not float64|not compiled)"):
        wavefront_scan(*make_inputs(11), backend="native")


def test_states_of_another_backend_are_refused():
    scan = make_inputs(12, dtype=torch.float32)
    states = torch.zeros(3, 1)
    with pytest.raises(RuntimeError, match="portable backend was given states that another backend saved"):
        torch.ops.visionssm.wavefront_scan_backward(torch.ones_like(scan.x), states, *scan, "portable")


# --- torch.library ----------------------------------------------------------------------------------------------------


class Scan(torch.nn.Module):
    def forward(self, *tensors):
        return wavefront_scan(*tensors)


@pytest.mark.parametrize(
    ("backend", "with_D"), [pytest.param(*NATIVE.values, True, marks=NATIVE.marks), ("portable", False)]
)
def test_opcheck(backend, with_D):
    scan = make_inputs(5, with_D=with_D, dtype=torch.float32)
    scan.x.requires_grad_()
    scan.A_left.requires_grad_()
    torch.library.opcheck(torch.ops.visionssm.wavefront_scan.default, (*scan, backend, True))


def test_compile_export_and_fx():
    inputs = tuple(make_inputs(6, dtype=torch.float32))
    expected = wavefront_scan(*inputs)
    torch.testing.assert_close(torch.export.export(Scan(), inputs).module()(*inputs), expected)

    class Traced(torch.nn.Module):
        def forward(self, x, delta):
            return wavefront_scan(x, delta, delta, *inputs[3:])

    assert torch.equal(torch.fx.symbolic_trace(Traced())(*inputs[:2]), Traced()(*inputs[:2]))
    torch.compiler.reset()
    leaves = [t.requires_grad_() for t in inputs]
    compiled = torch.compile(Scan(), backend="aot_eager", fullgraph=True)(*leaves)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(
        torch.autograd.grad(compiled.square().sum(), leaves),
        torch.autograd.grad(Scan()(*leaves).square().sum(), leaves),
    )


def test_a_program_traced_without_gradients_trains():
    inputs = tuple(make_inputs(6, dtype=torch.float32))
    with torch.no_grad():
        program = torch.export.export(Scan(), inputs).module()
    leaves = [t.requires_grad_() for t in inputs]
    actual = torch.autograd.grad(program(*leaves).square().sum(), leaves)
    torch.testing.assert_close(actual, torch.autograd.grad(wavefront_scan(*leaves).square().sum(), leaves))


def test_flops():
    scan = make_inputs(7)
    scan.x.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        wavefront_scan(*scan).sum().backward()
    cells = 2 * 3 * 4 * 3
    assert counter.get_total_flops() == 3 * 2 * (11 * cells * 2 + cells)


def test_no_graph_is_kept_without_gradients():
    assert not wavefront_scan(*make_inputs(8)).requires_grad


# --- bad input --------------------------------------------------------------------------------------------------------


BAD = {
    "dimensions": (dict(x=torch.zeros(2, 3, 4)), ValueError, r"x must be \(b, H, W, d\)"),
    "empty": (dict(x=torch.zeros(2, 0, 4, 3)), ValueError, "H, W and d at least 1"),
    "step size": (dict(delta_left=torch.zeros(2, 3, 4, 1)), ValueError, r"delta_left has shape .* \(2, 3, 4, 3\)"),
    "rates": (dict(A_left=torch.zeros(3, 3)), ValueError, r"A_left has shape \(3, 3\), expected \(3, 2\)"),
    "states": (dict(A_top=torch.zeros(3, 65)), ValueError, "1 to 64 states"),
    "projection": (dict(B_top=torch.zeros(2, 4, 3, 2)), ValueError, r"B_top has shape .* \(2, 3, 4, 2\)"),
    "skip": (dict(D=torch.zeros(2)), ValueError, r"D has shape \(2,\), expected \(3,\)"),
    "state dtype": (dict(A_top=torch.zeros(3, 2).bfloat16()), TypeError, r"A_top must be torch.float32"),
    "dtype": (dict(x=torch.zeros(2, 3, 4, 3).int()), TypeError, "x must be float32"),
    "mixed": (dict(C=torch.zeros(2, 3, 4, 2).double()), TypeError, "float64 does not mix"),
    "device": (dict(B_left=torch.zeros(2, 3, 4, 2, device="meta")), ValueError, "B_left is on meta but x is on cpu"),
    "not a tensor": (dict(C=None), TypeError, "C must be a tensor, got NoneType"),
    "backend": (
        dict(backend="fast"),
        ValueError,
        "unknown backend 'fast'; expected one of .*portable",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_named(name):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        wavefront_scan(**{**make_inputs(9, dtype=torch.float32)._asdict(), **changes})
