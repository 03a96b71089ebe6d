"""The native scan: every mode against the reference, and what only a library in C can get wrong."""

import ctypes
import logging
import multiprocessing
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_selective_scan import assert_close, make_inputs, run

import visionssm  # noqa: F401
from visionssm.ops import backend_unavailable, dispatch, selective_scan
from visionssm.ops.native import build, loading
from visionssm.ops.selective_scan import backends, reference
from visionssm.ops.selective_scan import native_backend as backend
from visionssm.ops.selective_scan.contract import Scan

why_not = backend_unavailable("native", "cpu")
needs_library = pytest.mark.skipif(why_not is not None, reason=f"native: {why_not}")


# --- against the reference --------------------------------------------------------------------------------------------


def random_scan(seed: int) -> Scan:
    """A scan of any mode: the sizes lie around those of vectors, blocks and chunks."""
    r, g = random.Random(seed), torch.Generator().manual_seed(seed)
    kind = r.choice(["raster", "permutation", "padded", "several"])
    b, K, L = r.randint(1, 3), r.randint(1, 4), r.choice([1, 2, 3, 7, 12, 31, 40, 70])
    T = L if kind in ("raster", "permutation") else r.choice([1, 5, 18, 32, 33, 66])
    d, N = r.choice([1, 2, 5, 16, 17, 32, 33, 48, 70]), r.choice([1, 1, 2, 5, 16, 16, 64])
    R = r.choice([0, 0, 1, 3, 17])
    dtype = r.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    u_by_step, by_step, softplus = r.random() < 0.5, r.random() < 0.5, r.random() < 0.8

    def sequence(stored_by_step, channels):
        shape = b, T if stored_by_step else L, r.choice([1, K, K]), channels
        return torch.randn(shape, generator=g).to(dtype)

    def parameter(*shape):
        return torch.randn(r.choice([1, K, K]), *shape, generator=g)

    u, delta, A, B = sequence(u_by_step, d), sequence(by_step, R or d), -parameter(d, N).exp(), sequence(by_step, N)
    C = None if N == 1 and r.random() < 0.3 else sequence(by_step, N)
    D, bias = (None if r.random() < 0.3 else parameter(d) for _ in range(2))
    weight = r.choice([parameter(d, R).to(dtype), parameter(d, R)]) if R else None
    order = None
    if kind == "permutation":
        order = torch.stack([torch.randperm(L, generator=g) for _ in range(K)])
    elif kind != "raster":
        order = torch.randint(-1 if kind == "padded" else 0, L, (K, T), generator=g)
    if order is None and u.shape[2] < K:
        u = u.expand(-1, -1, K, -1).contiguous()  # so that the number of routes is known
    if order is not None and r.random() < 0.5:
        order = order.int()
    if not softplus:  # a negative step size would let states grow
        delta, weight, bias = (None if x is None else x.abs() for x in (delta, weight, bias))
    if r.random() < 0.3:
        u, B, A = (x.transpose(i, -1).contiguous().transpose(i, -1) for x, i in ((u, 0), (B, 1), (A, 0)))
    initial = torch.randn(b, K, d, N, generator=g) if r.random() < 0.3 else None
    out, out_dtype = r.choice(["sum", "route", "step"]), r.choice([dtype, torch.float32, torch.bfloat16])
    rest = (L, u_by_step, by_step, out, out_dtype, softplus, r.random() < 0.4)
    return Scan(u, delta, A, B, C, D, bias, weight, initial, order, *rest)


def check(scan: Scan, seed: int) -> None:
    """Outputs and gradients of the library against the reference in float64."""
    doubles = [None if t is None else t.double() for t in scan.tensors]
    oracle = Scan._make([*doubles, *scan[len(doubles) :]])._replace(out_dtype=torch.float64)
    y, last, states = backend.forward(scan, True)
    expected, expected_last, nothing = reference.forward(oracle, True)
    assert states is not None and nothing is not None and (last is not None) == scan.last_state
    pairs = [("output", y, expected), ("last state", last, expected_last)]
    g = torch.Generator().manual_seed(seed)
    grad = torch.randn(y.shape, generator=g).to(y.dtype)
    grad_last = None if last is None or seed % 3 == 0 else torch.randn(last.shape, generator=g)
    grads = backend.backward(grad, grad_last, states, scan)
    grads_oracle = reference.backward(grad.double(), None if grad_last is None else grad_last.double(), nothing, oracle)
    pairs += zip(scan._fields, grads, grads_oracle, strict=False)
    for name, a, e in pairs:
        assert (a is None) == (e is None), name
        if a is None or e is None:
            continue
        assert a.shape == e.shape and a.is_contiguous(), name
        tolerance = 5e-5 if a.dtype == torch.float32 else 1e-2
        error = (a.double() - e).abs().max().item()
        assert error <= tolerance * max(1.0, e.abs().max().item()), (seed, name, error)
    again = backend.forward(scan._replace(last_state=False), False)
    assert torch.equal(again[0], y) and again[1:] == (None, None)


@needs_library
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_scan_equals_the_reference(seed):
    check(random_scan(seed), seed)


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize("thousand", range(10))
def test_ten_thousand_scans_equal_the_reference(thousand):
    for seed in range(1000 * thousand, 1000 * thousand + 1000):
        check(random_scan(seed), seed)


@needs_library
@pytest.mark.parametrize("N", [1, 3, 16])
def test_routes_that_decay_alike_go_together(N):
    for seed, k in enumerate((2, 3, 4, 7)):
        kind = ("raster", "permutation", "padded", "several")[(seed + N) % 4]
        options = dict(index="step", u_index=("step", "token")[seed % 2], out=("sum", "route", "step", "sum")[seed])
        sizes = dict(b=2, L=33, T=40, k=k, d=(17, 33, 70, 16)[seed], N=N, rank=(0, 5)[k % 2], kind=kind)
        shared = {"delta", "A", "delta_bias", "dt_weight"} | ({"C"} if k % 3 else set())
        options |= dict(shared=shared, last=True, initial=True, dtype=torch.float32)
        given = make_inputs(7 * k + seed, **sizes, **options)
        assert_close(run(*given, "native"), run(*given, "reference"), 2e-5)


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def instruction_set(request):
    if why_not is not None:
        pytest.skip(f"native: {why_not}")
    try:
        loading.force_instruction_set(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    loading.force_instruction_set(None)


def test_every_instruction_set(instruction_set):
    assert loading.instruction_set() == instruction_set
    for seed in range(25):
        check(random_scan(seed), seed)


@needs_library
def test_unknown_instruction_set():
    with pytest.raises(ValueError, match="no 'sse9' version"):
        loading.force_instruction_set("sse9")


# --- elementary functions ---------------------------------------------------------------------------------------------


def elementary(name, x, outputs=1):
    """Results of one of the library's functions for tests; x has a multiple of 16 elements."""
    results = [np.empty(x.size, np.float32) for _ in range(outputs)]
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (x, *results)]
    getattr(loading.LIBRARY_LOADED, f"visionssm_{name}")(*pointers, ctypes.c_int64(x.size))
    return results


SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0, -0.0, 1e38, -1e38, 1e-40, -1e-40, 1e-20, -200, 200, 1, -1, 20, 21], "f4"
)


def test_power_of_two(instruction_set):
    x = np.concatenate([np.linspace(-126, 127.999, 1 << 18), np.linspace(-1, 1, 1 << 16)]).astype(np.float32)
    exact = np.exp2(x.astype(np.float64))
    assert np.abs(elementary("exp2", x)[0] / exact - 1).max() < 1.1e-7
    below = np.linspace(-160, -126, 1 << 10, dtype=np.float32)
    assert np.abs(elementary("exp2", below)[0] - np.exp2(below.astype(np.float64))).max() < 2.0**-126
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(elementary("exp2", SPECIAL)[0], np.exp2(SPECIAL), rtol=1e-6)


def test_softplus_and_its_derivative(instruction_set):
    z = np.concatenate([np.linspace(-87, 100, 1 << 18), np.linspace(-1, 1, 1 << 16)]).astype(np.float32)
    value, slope = elementary("softplus", z, 2)
    wide = z.astype(np.float64)
    # log1p loses nothing: e^z is exact enough in float64
    assert np.abs(value / np.where(wide > 30, wide, np.log1p(np.exp(wide))) - 1).max() < 3e-7
    assert np.abs(slope * (1 + np.exp(-wide)) - 1).max() < 3e-7
    value, slope = elementary("softplus", SPECIAL, 2)
    x = torch.from_numpy(SPECIAL)
    np.testing.assert_allclose(value, torch.nn.functional.softplus(x).numpy(), rtol=1e-6, atol=2.0**-126)
    np.testing.assert_allclose(slope, torch.sigmoid(x).numpy(), rtol=1e-6, atol=2.0**-126)


@pytest.mark.parametrize(("dtype", "code"), [(torch.bfloat16, 1), (torch.float16, 2)])
def test_every_number_of_sixteen_bits(instruction_set, dtype, code):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    x, y = bits.view(dtype), torch.empty(2**16)
    pointers = ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(code), ctypes.c_void_p(y.data_ptr())
    loading.LIBRARY_LOADED.visionssm_widen(*pointers, ctypes.c_int64(x.numel()))
    torch.testing.assert_close(y, x.float(), rtol=0, atol=0, equal_nan=True)


@needs_library
def test_not_a_number_survives():
    args, options = make_inputs(1, L=40, d=33, N=16, dtype=torch.float32, out="step", kind="raster")
    args.pop("dt_weight")
    for name, at in (("delta", (0, 7, 1, 20)), ("u", (0, 7, 1, 20)), ("B", (0, 7, 1, 3))):
        spoilt = {**args, name: args[name].clone()}
        spoilt[name][at] = float("nan")
        actual = selective_scan(**spoilt, **options, backend="native")
        assert torch.equal(actual.isnan(), selective_scan(**spoilt, **options, backend="reference").isnan())
        assert actual.isnan().any()


# --- threads and processes --------------------------------------------------------------------------------------------


def large():
    """Enough work for four threads."""
    args, options = make_inputs(3, b=2, L=150, k=2, d=100, N=16, rank=5, kind="permutation", dtype=torch.float32)
    for name in ("B", "delta"):
        args[name] = args[name][:, :, :1].contiguous()  # sums over the routes, too
    return args, options


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_library
def test_result_does_not_depend_on_the_threads(threads):
    args, options = large()
    threads(1)
    y, grads = run(args, options, "native")
    for count in (2, 3, 4, 7):
        threads(count)
        other, other_grads = run(args, options, "native")
        assert torch.equal(other, y)
        assert all(torch.equal(other_grads[name], grads[name]) for name in grads)


@needs_library
def test_forked_process_scans_too(threads):
    """A loader's worker is forked while the parent has run threads."""
    args, options = large()
    threads(4)
    expected = run(args, options, "native")[0]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=scan_in_child, args=(queue, args, options))
    child.start()
    assert np.array_equal(queue.get(timeout=60), expected.numpy())
    child.join(timeout=60)
    assert child.exitcode == 0


def scan_in_child(queue, args, options):
    with torch.no_grad():
        queue.put(selective_scan(**args, **options, backend="native").numpy())


@needs_library
def test_callers_in_several_threads():
    args, options = large()
    expected = run(args, options, "native")[0]
    with ThreadPoolExecutor(4) as pool:
        for y, _ in pool.map(lambda _: run(args, options, "native"), range(8)):
            assert torch.equal(y, expected)


# --- the seam ---------------------------------------------------------------------------------------------------------


@needs_library
def test_native_is_the_default_on_cpus(monkeypatch):
    monkeypatch.delenv("VISIONSSM_BACKEND", raising=False)
    assert backends.choose_backend(None, torch.device("cpu"), torch.float32).name == "native"
    assert backends.choose_backend(None, torch.device("cpu"), torch.float64).name == "portable"


@needs_library
def test_inference_mode():
    args, options = make_inputs(4, dtype=torch.float32)
    args.pop("dt_weight")
    with torch.inference_mode():
        y = selective_scan(**args, **options, backend="native")
    torch.testing.assert_close(y, selective_scan(**args, **options, backend="reference"))


@needs_library
@pytest.mark.parametrize("name", ["test_vmamba", "test_vim"])
def test_bfloat16_autocast(name, monkeypatch):
    """The library reads the low precision itself; a model trains in it and stays near its float32 self."""
    monkeypatch.setenv("VISIONSSM_BACKEND", "native")
    given, scan_of = [], backend._scan
    monkeypatch.setattr(backend, "_scan", lambda scan, *rest: (given.append(scan.u.dtype), scan_of(scan, *rest))[1])
    torch.manual_seed(0)
    model, x = timm.create_model(name, num_classes=5), torch.randn(2, 3, 64, 64)
    results = []
    for low in (False, True):
        given.clear()
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = model(x)
        logits.float().square().sum().backward()
        assert set(given) == {torch.bfloat16 if low else torch.float32}
        results.append((logits.detach().float(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    for expected, found in zip(*results, strict=True):
        assert (found - expected).norm() < 0.1 * expected.norm()


def test_doubles_are_refused():
    args, options = make_inputs(5)
    args.pop("dt_weight")
    with pytest.raises(RuntimeError, match="native backend cannot run on cpu: .*(not float64|not compiled)"):
        selective_scan(**args, **options, backend="native")


def test_missing_library_is_said_once_and_refused_by_name(monkeypatch, caplog):
    monkeypatch.delenv("VISIONSSM_BACKEND", raising=False)
    monkeypatch.setattr(dispatch, "_told", set())
    monkeypatch.setattr(loading, "LIBRARY_LOADED", None)
    monkeypatch.setattr(loading, "MISSING", "it is on holiday")
    args, options = make_inputs(6, dtype=torch.float32)
    args.pop("dt_weight")
    with caplog.at_level(logging.WARNING):
        selective_scan(**args, **options)
        assert not caplog.records, "a small scan is no reason to speak"
        for _ in range(2):
            selective_scan(**{**args, "u": args["u"].requires_grad_()}, **options)
    assert [r.message for r in caplog.records] == [
        "selective_scan takes the portable backend on cpu, not the native one: it is on holiday"
    ]
    with pytest.raises(RuntimeError, match="native backend cannot run on cpu: it is on holiday"):
        selective_scan(**args, **options, backend="native")


def test_library_of_other_sources_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("VISIONSSM_NATIVE_LIBRARY", str(tmp_path / "none.so"))
    assert "does not exist" in loading._find()[1]
    (tmp_path / "none.so").write_bytes(b"not a library")
    assert "cannot be loaded" in loading._find()[1]
    monkeypatch.delenv("VISIONSSM_NATIVE_LIBRARY")
    monkeypatch.setattr(loading, "LIBRARY", tmp_path / "absent.so")
    assert "not compiled" in loading._find()[1] and "native.build" in loading._find()[1]
    if why_not is None:
        monkeypatch.undo()
        monkeypatch.setattr(loading, "fingerprint", lambda: "other")
        assert "compiled from other sources" in loading._find()[1]


def test_build_says_what_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(build.BuildError, match="no C compiler was found .*no-such-compiler"):
        build.build(tmp_path / "library.so")
    monkeypatch.setenv("CC", "false")
    with pytest.raises(build.BuildError, match="false failed"):
        build.build(tmp_path / "library.so")
    assert not list(tmp_path.iterdir())
