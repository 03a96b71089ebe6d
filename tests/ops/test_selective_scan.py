"""The operator: its contract, and the implementations for CPUs against the step-by-step reference."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops import available_backends, backend_unavailable, selective_scan
from visionssm.ops.selective_scan import portable
from visionssm.ops.selective_scan.backends import BACKENDS
from visionssm.ops.selective_scan.contract import canonical
from visionssm.ops.selective_scan.formula import selective_scan_formula
from visionssm.ops.selective_scan.reference import selective_scan_reference

DATA = Path(__file__).parents[1] / "data"
NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "dt_weight")


def on_cpus():
    """The backends that are taken on CPUs, as parameters of a test; one that cannot run is skipped with its reason."""
    parameters = []
    for backend in BACKENDS:
        if backend.devices is None or "cpu" in backend.devices:
            reason = backend_unavailable(backend.name, "cpu")
            skip = pytest.mark.skipif(reason is not None, reason=f"{backend.name}: {reason}")
            parameters.append(pytest.param(backend.name, marks=skip))
    return parameters


each_backend = pytest.mark.parametrize("implementation", on_cpus())


def make_order(kind, k, L, T, generator):
    if kind == "raster":
        return None
    if kind == "permutation":
        return torch.stack([torch.randperm(L, generator=generator) for _ in range(k)]).int()
    return torch.randint(-1 if kind == "padded" else 0, L, (k, T), generator=generator)


def make_inputs(
    seed,
    *,
    b=2,
    L=7,
    T=None,
    k=2,
    d=3,
    N=2,
    rank=0,
    kind="permutation",
    u_index="token",
    index="token",
    out="sum",
    shared=(),
    no_C=False,
    no_D=False,
    no_bias=False,
    initial=False,
    last=False,
    softplus=True,
    dtype=torch.float64,
):
    """Random arguments of the operator; `shared` names the tensors without a route axis."""
    g = torch.Generator().manual_seed(seed)
    T = L if T is None or kind in ("raster", "permutation") else T
    state = torch.float64 if dtype == torch.float64 else torch.float32

    def sequence(name, stored, channels):
        steps = T if stored == "step" else L
        shape = (b, steps, channels) if name in shared else (b, steps, k, channels)
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    def parameter(name, *shape, dtype=state):
        shape = shape if name in shared else (k, *shape)
        return torch.randn(shape, generator=g, dtype=torch.float64).to(dtype)

    args = dict(
        u=sequence("u", u_index, d),
        delta=sequence("delta", index, rank or d),
        A=-parameter("A", d, N).exp(),
        B=sequence("B", index, N),
        C=None if no_C else sequence("C", index, N),
        D=None if no_D else parameter("D", d),
        delta_bias=None if no_bias else parameter("delta_bias", d),
        dt_weight=parameter("dt_weight", d, rank, dtype=dtype) if rank else None,
    )
    order = make_order(kind, k, L, T, g)
    if order is None and k > 1 and all(n in shared for n, x in args.items() if x is not None):
        args["B"] = torch.randn(b, args["B"].shape[1], k, N, generator=g, dtype=torch.float64).to(dtype)
    if initial:
        shape = (b, d, N) if "initial_state" in shared else (b, k, d, N)
        args["initial_state"] = torch.randn(shape, generator=g, dtype=torch.float64).to(state)
    if not softplus:  # step sizes that let the state decay
        args["delta"] = args["delta"].abs()
        for name in ("delta_bias", "dt_weight"):
            args[name] = None if args[name] is None else args[name].abs()
    options = dict(order=order, num_tokens=L, u_index=u_index, index=index, out=out)
    options |= dict(return_last_state=last, delta_softplus=softplus)
    return args, options


def run(args, options, backend, weight_seed=5):
    """Output and gradients of a random weighting of it; a last state is weighted too, and stands with the gradients."""
    leaves = {n: x.detach().clone().requires_grad_() for n, x in args.items() if x is not None}
    outputs = selective_scan(**{n: leaves.get(n) for n in args}, **options, backend=backend)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    g = torch.Generator().manual_seed(weight_seed)
    weighted = ((y * torch.randn(y.shape, generator=g, dtype=torch.float64).to(y.dtype)).sum() for y in outputs)
    grads = torch.autograd.grad(sum(w.to(leaves["A"].dtype) for w in weighted), list(leaves.values()))
    found = dict(zip(leaves, grads, strict=True))
    if len(outputs) > 1:
        found["last state"] = outputs[1].detach()
    return outputs[0].detach(), found


def assert_close(actual, expected, tolerance):
    """Both output and gradients, relative to the expected tensor's largest value."""
    for name, a, e in [("output", actual[0], expected[0]), *((n, actual[1][n], expected[1][n]) for n in expected[1])]:
        assert a.shape == e.shape and a.dtype == e.dtype, name
        error = (a.double() - e.double()).abs().max().item()
        assert error <= tolerance * max(1.0, e.double().abs().max().item()), (name, error)


cases = st.fixed_dictionaries(
    dict(
        seed=st.integers(0, 2**20),
        b=st.integers(1, 3),
        L=st.sampled_from([1, 2, 3, 7, 12, 31]),
        T=st.sampled_from([1, 5, 18]),
        k=st.integers(1, 4),
        d=st.sampled_from([1, 2, 5]),
        N=st.sampled_from([1, 2, 5, 16]),
        rank=st.sampled_from([0, 0, 1, 3]),
        kind=st.sampled_from(["raster", "permutation", "padded", "several"]),
        u_index=st.sampled_from(["token", "step"]),
        index=st.sampled_from(["token", "step"]),
        out=st.sampled_from(["sum", "route", "step"]),
        shared=st.sets(st.sampled_from((*NAMES, "initial_state"))),
        no_D=st.booleans(),
        no_bias=st.booleans(),
        initial=st.booleans(),
        last=st.booleans(),
        softplus=st.booleans(),
    )
)


@settings(max_examples=120, deadline=None)
@given(case=cases)
def test_portable_equals_reference_in_float64(case):
    args, options = make_inputs(**case)
    assert_close(run(args, options, "portable"), run(args, options, "reference"), 1e-10)


@each_backend
@settings(max_examples=60, deadline=None)
@given(case=cases, dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_equals_reference_in_low_precision(implementation, case, dtype):
    args, options = make_inputs(**case, dtype=dtype)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    assert_close(run(args, options, implementation), run(args, options, "reference"), tolerance)


@settings(max_examples=60, deadline=None)
@given(case=cases)
def test_exporters_program_equals_reference(case):
    args, options = make_inputs(**case)
    given_options = (options[n] for n in ("order", "num_tokens", "u_index", "index", "out"))
    scan = canonical(
        *(args[n] for n in NAMES), *given_options, None, args.get("initial_state"), options["delta_softplus"], True
    )
    expected = selective_scan_reference(scan)
    torch.testing.assert_close(selective_scan_formula(scan), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["raster", "permutation", "padded"])
@pytest.mark.parametrize(("lanes", "block"), [(1, 4), (1, 64), (64, 64), (10**6, 512), (10**6, 10**6)])
def test_every_plan_gives_the_same_result(monkeypatch, kind, lanes, block):
    args, options = make_inputs(3, L=61, T=67, k=2, d=3, N=2, kind=kind)
    expected = run(args, options, "reference")
    monkeypatch.setattr(portable, "_LANES", lanes)
    monkeypatch.setattr(portable, "_BLOCK", block)
    assert_close(run(args, options, "portable"), expected, 1e-10)


@pytest.mark.parametrize("steps", [1, 2, 49, 197, 3136, 10007])
@pytest.mark.parametrize("lanes", [1, 96, 384, 12288, 10**6])
def test_plan_covers_every_step_once(steps, lanes):
    position = 0
    for start, groups, length in portable._plan(steps, lanes):
        assert start == position and groups >= 1 and length >= 1
        position += groups * length
    assert position == steps


@pytest.mark.parametrize("shared", [(), ("u", "A", "delta_bias")])
@pytest.mark.parametrize("kind", ["permutation", "padded"])
def test_gradcheck(kind, shared):
    args, options = make_inputs(1, b=1, L=4, T=5, k=2, d=2, N=2, rank=2, kind=kind, shared=shared)
    names = [n for n in NAMES if args[n] is not None]
    leaves = [args[n].requires_grad_() for n in names]

    def function(*tensors):
        inputs = dict(zip(names, tensors, strict=True))
        weight = inputs.pop("dt_weight")
        return selective_scan(**inputs, dt_weight=weight, **options, backend="portable")

    assert torch.autograd.gradcheck(function, leaves)


@each_backend
def test_states_come_back_without_C(implementation):
    args, options = make_inputs(2, N=1, no_C=True, no_D=True, out="step", dtype=torch.float32)
    y = run(args, options, implementation)
    assert_close(y, run(args, options, "reference"), 1e-5)
    ones = {**args, "C": torch.ones_like(args["B"])}
    torch.testing.assert_close(y[0], run(ones, options, implementation)[0])


@each_backend
@pytest.mark.parametrize("cuts", [(1, 2), (5,), (3, 6, 8)])
def test_pieces_equal_the_whole(implementation, cuts):
    """Outputs, last state and gradients of a sequence scanned piece by piece, each from where the one before ended."""
    args, options = make_inputs(
        15, L=9, k=2, d=3, N=2, kind="raster", initial=True, last=True, out="route", dtype=torch.float32
    )
    leaves = {n: x.requires_grad_() for n, x in args.items() if x is not None}
    options.pop("num_tokens")
    stored = "u", "delta", "B", "C"
    state, pieces, start = leaves["initial_state"], [], 0
    for stop in (*cuts, 9):
        piece = {n: x[:, start:stop] if n in stored else x for n, x in leaves.items()} | dict(initial_state=state)
        y, state = selective_scan(**piece, **options, backend=implementation)
        pieces.append(y)
        start = stop
    whole = selective_scan(**leaves, **options, backend=implementation)
    actual = torch.cat(pieces, 1), state
    torch.testing.assert_close(actual, whole, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(y.square().sum() + h.sin().sum(), list(leaves.values())) for y, h in (actual, whole)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", available_backends())
def test_empty_batch(backend):
    args, options = make_inputs(16, b=2, k=2, N=2, initial=True, last=True, dtype=torch.float32)
    args = {n: x[:0] if n in ("u", "delta", "B", "C", "initial_state") else x for n, x in args.items() if x is not None}
    args = {n: x.requires_grad_() for n, x in args.items()}
    y, last = selective_scan(**args, **options, backend=backend)
    assert y.shape == (0, 7, 3) and last.shape == (0, 2, 3, 2)
    for x, g in zip(args.values(), torch.autograd.grad(y.sum() + last.sum(), list(args.values())), strict=True):
        assert g.shape == x.shape and not g.any()


def test_last_state_alone():
    """A loss that reads no output."""
    args, options = make_inputs(17, last=True, no_D=True)
    args = {n: x.requires_grad_() for n, x in args.items() if x is not None}
    grads = []
    for backend in ("portable", "reference"):
        last = selective_scan(**args, **options, backend=backend)[1]
        grads.append(torch.autograd.grad(last.square().sum(), list(args.values())))
    assert not grads[0][list(args).index("C")].any()
    torch.testing.assert_close(*grads)


@each_backend
def test_zero_token_decays_the_state_by_softplus_of_the_bias(implementation):
    u = torch.tensor([[[1.0], [0.0]]])
    zeros, ones = torch.zeros(1, 2, 1), torch.ones(1, 2, 1)
    order = torch.tensor([[0, -1, -1, 1]])
    parameters = dict(delta_bias=torch.tensor([0.5]), order=order, backend=implementation)
    y = selective_scan(u, zeros, -torch.ones(1, 1), ones, ones, **parameters)
    step = torch.nn.functional.softplus(torch.tensor(0.5))
    expected = torch.stack([step, step * torch.exp(-3 * step)])
    torch.testing.assert_close(y[0, :, 0], expected)


@each_backend
def test_non_contiguous_inputs(implementation):
    args, options = make_inputs(4, L=12, k=3, d=5, N=3, rank=2, dtype=torch.float32)
    expected = run(args, options, "reference")
    strided = {n: None if x is None else x.transpose(0, -1).contiguous().transpose(0, -1) for n, x in args.items()}
    assert_close(run(strided, options, implementation), expected, 1e-5)


@each_backend
def test_recorded_scan(implementation):
    """The operator of VMamba's repository on recorded inputs, in its channel-major layout."""
    case = json.loads((DATA / "ops" / "vmamba-selective_scan.json").read_text())
    b, k, c, n, L = (case["shapes"][s] for s in ("B", "K", "c", "N", "L"))

    def normal(shape, seed):
        return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))

    u, delta = normal((b, k * c, L), 21), normal((b, k * c, L), 22)
    B, C = normal((b, k, n, L), 23), normal((b, k, n, L), 24)
    A, D = -torch.exp(0.5 * normal((k * c, n), 25)), normal((k * c,), 26)
    leaves = dict(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=normal((k * c,), 27))
    for x in leaves.values():
        x.requires_grad_()
    y = selective_scan(
        leaves["u"].view(b, k, c, L).permute(0, 3, 1, 2),
        leaves["delta"].view(b, k, c, L).permute(0, 3, 1, 2),
        leaves["A"].view(k, c, n),
        leaves["B"].permute(0, 3, 1, 2),
        leaves["C"].permute(0, 3, 1, 2),
        leaves["D"].view(k, c),
        leaves["delta_bias"].view(k, c),
        out="step",
        backend=implementation,
    )
    y = y.permute(0, 2, 3, 1).reshape(b, k * c, L)
    np.testing.assert_allclose(y.detach().numpy().ravel(), case["output"]["data"], rtol=1e-5, atol=1e-5)
    grads = torch.autograd.grad((y * normal((b, k * c, L), 28)).sum(), list(leaves.values()))
    for name, grad in zip(leaves, grads, strict=True):
        expected = np.array(case["grads"][name]["data"])
        np.testing.assert_allclose(grad.numpy().ravel(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# --- torch.library ----------------------------------------------------------------------------------------------------


@each_backend
def test_opcheck(implementation):
    args, options = make_inputs(6, rank=2, initial=True, dtype=torch.float32)
    given_options = options["order"], options["num_tokens"], "token", "token", "sum", None
    scan = canonical(*(args[n] for n in NAMES), *given_options, args["initial_state"], True, True)
    scan = scan._replace(u=scan.u.requires_grad_(), A=scan.A.requires_grad_())
    torch.library.opcheck(torch.ops.visionssm.selective_scan.default, (*scan, implementation, True))


@each_backend
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_without_graph_breaks(backend, implementation, monkeypatch):
    monkeypatch.setenv("VISIONSSM_BACKEND", implementation)
    args, options = make_inputs(7, dtype=torch.float32)
    torch.compiler.reset()

    def function(u, delta, A, B):
        return selective_scan(u, delta, A, B, B, order=options["order"])

    inputs = [args[n].requires_grad_() for n in ("u", "delta", "A", "B")]
    torch.testing.assert_close(torch.compile(function, backend=backend, fullgraph=True)(*inputs), function(*inputs))


@each_backend
def test_export_and_fx(implementation, monkeypatch):
    monkeypatch.setenv("VISIONSSM_BACKEND", implementation)
    args, options = make_inputs(9, dtype=torch.float32)

    class Scan(torch.nn.Module):
        def forward(self, u, delta, A, B, C):
            return selective_scan(u, delta, A, B, C, order=options["order"])

    inputs = tuple(args[n] for n in ("u", "delta", "A", "B", "C"))
    expected = Scan()(*inputs)
    torch.testing.assert_close(torch.export.export(Scan(), inputs).module()(*inputs), expected)
    assert torch.equal(torch.fx.symbolic_trace(Scan())(*inputs), expected)


def test_flops():
    args, options = make_inputs(10, b=2, L=7, k=2, d=3, N=2, rank=4, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        weight = args.pop("dt_weight")
        selective_scan(**args, dt_weight=weight, **options)
    b, T, k, d, N, R = 2, 7, 2, 3, 2, 4
    assert counter.get_total_flops() == 2 * (9 * b * T * k * d * N + b * T * k * d + b * T * k * d * R)


def test_no_graph_is_kept_without_gradients():
    args, options = make_inputs(11)
    weight = args.pop("dt_weight")
    assert not selective_scan(**args, dt_weight=weight, **options).requires_grad


# --- backends and bad input -------------------------------------------------------------------------------------------


def test_backend_choice(monkeypatch):
    args, options = make_inputs(12)
    args.pop("dt_weight")
    assert "portable" in available_backends() and "reference" in available_backends()
    monkeypatch.setenv("VISIONSSM_BACKEND", "reference")
    by_environment = selective_scan(**args, **options)
    torch.testing.assert_close(by_environment, selective_scan(**args, **options, backend="portable"))
    monkeypatch.setenv("VISIONSSM_BACKEND", "cuda")
    with pytest.raises(ValueError, match="unknown VISIONSSM_BACKEND 'cuda'.*triton, native, portable, reference"):
        selective_scan(**args, **options)


def bad_calls():
    args, options = make_inputs(13, b=2, L=6, k=2, d=3, N=2)
    args.pop("dt_weight")

    def call(**changes):
        a = {**args, **options, **changes}
        return lambda: selective_scan(**a)

    wide = torch.zeros(2, 6, 2, 4, dtype=torch.float64)
    return {
        "channels": (call(u=wide), ValueError, r"u has shape \(2, 6, 2, 4\).*expected \(2, 6, 2, 3\)"),
        "routes": (call(B=torch.zeros(2, 6, 3, 2, dtype=torch.float64)), ValueError, "B has shape"),
        "dimensions": (call(u=wide[0, 0]), ValueError, "u must have 3 or 4 dimensions"),
        "dtype": (call(u=args["u"].int()), TypeError, "u must be float32"),
        "mixed": (call(u=args["u"].float()), TypeError, "float64 does not mix|must be torch.float32"),
        "A dtype": (call(A=args["A"].float()), TypeError, r"A must be torch.float64"),
        "states": (call(A=torch.zeros(2, 3, 65, dtype=torch.float64)), ValueError, "65 states; between 1 and 64"),
        "no C": (call(C=None), ValueError, "needs N = 1"),
        "out": (call(out="mean"), ValueError, "out must be one of 'sum', 'route', 'step', got 'mean'"),
        "index": (call(u_index="pixel"), ValueError, "u_index must be one of"),
        "initial routes": (call(initial_state=torch.zeros(2, 3, 3, 2).double()), ValueError, "initial_state has shape"),
        "initial dtype": (
            call(initial_state=torch.zeros(2, 2, 3, 2)),
            TypeError,
            "initial_state must be torch.float64",
        ),
        "no token": (call(u=args["u"][:, :0], num_tokens=None), ValueError, "at least 1 token, got 0"),
        "order high": (call(order=torch.tensor([[0, 6], [0, 1]])), ValueError, r"entries from 0 to 6; with 6 tokens"),
        "order low": (call(order=torch.tensor([[0, -2], [0, 1]])), ValueError, r"entries from -2"),
        "order dtype": (call(order=torch.zeros(2, 6)), TypeError, "order must be int32 or int64"),
        "order routes": (call(order=torch.zeros(3, 6, dtype=torch.int32)), ValueError, "expected"),
        "num_tokens": (call(u_index="step", index="step", num_tokens=None), ValueError, "num_tokens is needed"),
        "device": (call(B=args["B"].to("meta")), ValueError, "B is on meta but u is on cpu"),
        "not a tensor": (call(u=[1.0]), TypeError, "u must be a tensor, got list"),
        "backend": (call(backend="fast"), ValueError, "unknown backend 'fast'"),
    }


@pytest.mark.parametrize("name", list(bad_calls()))
def test_bad_input_is_named(name):
    call, error, message = bad_calls()[name]
    with pytest.raises(error, match=message):
        call()
