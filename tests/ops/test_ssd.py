"""State-space duality: its contract, and the matrix products against the recurrences token by token."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from visionssm.ops.ssd import causal_ssd, noncausal_ssd, quasi_separable_ssd, read_state, weighted_state
from visionssm.ops.ssd.reference import causal_ssd_reference, noncausal_ssd_reference, quasi_separable_ssd_reference

DATA = Path(__file__).parents[1] / "data"
sys.path.insert(0, str(DATA))
from reference_weights import fill, reference_input  # noqa: E402

RECORDED = json.loads((DATA / "ssd" / "recorded.json").read_text())
REFERENCES = {
    causal_ssd: causal_ssd_reference,
    noncausal_ssd: noncausal_ssd_reference,
    quasi_separable_ssd: quasi_separable_ssd_reference,
}


def make_inputs(
    function, seed=0, *, b=2, L=7, h=4, p=3, g=2, n=5, skip=True, bias=True, per_token=True, dtype=torch.float64
):
    """Random arguments by name, in the order of the function's signature."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    state = torch.float64 if dtype == torch.float64 else torch.float32
    ways = (2,) if function is quasi_separable_ssd else ()
    groups = () if g == 1 else (g,)
    arguments = dict(
        x=draw(b, L, h, p),
        delta=draw(b, L, *ways, h),
        A=-draw(h, dtype=state).exp(),
        B=draw(b, L, *ways, *groups, n),
        C=draw(b, L, *ways, *groups, n),
    )
    if function is quasi_separable_ssd:
        arguments["diagonal"] = draw(b, L, h) if per_token else draw(h, dtype=state)
    elif skip:
        arguments["D"] = draw(h, dtype=state)
    if bias:
        arguments["delta_bias"] = draw(h, dtype=state)
    return arguments


def run(function, arguments, autocast=False, **options):
    """Output and gradients of a random weighting of it."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in arguments.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = function(**leaves, **options)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(y.dtype)
    grads = torch.autograd.grad((y * weight).sum(), list(leaves.values()), materialize_grads=True)
    return {"output": y.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_close(actual, expected, tolerance):
    """Output and gradients, relative to the expected tensor's largest value."""
    for name, e in expected.items():
        a = actual[name]
        assert a.shape == e.shape and a.dtype == e.dtype, name
        error = (a.double() - e.double()).abs().max().item()
        assert error <= tolerance * max(1.0, e.double().abs().max().item()), (name, error)


functions = pytest.mark.parametrize("function", REFERENCES, ids=lambda f: f.__name__)
cases = st.fixed_dictionaries(
    dict(
        seed=st.integers(0, 2**20),
        b=st.integers(1, 2),
        L=st.integers(1, 13),
        h=st.sampled_from([6, 12]),
        p=st.sampled_from([1, 4]),
        g=st.sampled_from([1, 2, 6]),
        n=st.sampled_from([1, 3, 16]),
        skip=st.booleans(),
        bias=st.booleans(),
        per_token=st.booleans(),
    )
)


@functions
@settings(max_examples=25, deadline=None)
@given(case=cases, chunk=st.integers(1, 14))
def test_equals_reference_in_float64(function, case, chunk):
    arguments = make_inputs(function, **case)
    options = {} if function is noncausal_ssd else {"chunk": chunk}
    assert_close(run(function, arguments, **options), run(REFERENCES[function], arguments), 1e-11)


@functions
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)], ids=str
)
def test_equals_reference_in_low_precision(function, dtype, tolerance):
    arguments = make_inputs(function, L=37, n=8, p=4, dtype=dtype)
    options = {} if function is noncausal_ssd else {"chunk": 8}
    exact = {name: t.double() for name, t in arguments.items()}
    expected = run(REFERENCES[function], exact)
    found = run(function, arguments, **options)
    assert found["output"].dtype == dtype
    assert found["A"].dtype == torch.float32
    assert_close({name: t.double() for name, t in found.items()}, expected, tolerance)


def test_strong_decays_do_not_cancel():
    """Steps that forget everything lie before weak ones: sums of log decays must not be taken as differences."""
    arguments = make_inputs(causal_ssd, b=1, L=64, h=1, g=1, p=2, n=2, skip=False, bias=False, dtype=torch.float32)
    arguments["delta"][:, :32] += 5000
    arguments["delta"][:, 32:] -= 4
    y = causal_ssd(**arguments)
    assert y.isfinite().all()
    expected = causal_ssd_reference(**{name: t.double() for name, t in arguments.items()})
    torch.testing.assert_close(
        y[:, 33:].double(), expected[:, 33:], rtol=1e-5, atol=1e-5 * expected[:, 33:].std().item()
    )


def test_float16_states_do_not_overflow():
    x = torch.full((1, 4000, 1, 4), 30.0, dtype=torch.float16)
    delta, A = torch.full((1, 4000, 1), 3.0, dtype=torch.float16), torch.tensor([-1.0])
    B, C = torch.ones(1, 4000, 2, dtype=torch.float16), torch.full((1, 4000, 2), 1e-3, dtype=torch.float16)
    y = noncausal_ssd(x, delta, A, B, C)
    torch.testing.assert_close(y, noncausal_ssd_reference(x, delta, A, B, C), rtol=2e-3, atol=0)
    assert 600 < y.min() and y.isfinite().all()


@functions
def test_autocast_changes_nothing(function):
    arguments = make_inputs(function, L=20, dtype=torch.float32)
    assert_close(run(function, arguments, autocast=True), run(function, arguments), 0)


@functions
def test_gradcheck(function):
    arguments = make_inputs(function, b=1, L=5, h=2, p=2, n=2)
    leaves = [t.requires_grad_() for t in arguments.values()]
    options = {} if function is noncausal_ssd else {"chunk": 2}
    assert torch.autograd.gradcheck(
        lambda *tensors: function(**dict(zip(arguments, tensors, strict=True)), **options), leaves
    )


@functions
def test_compile_without_graph_breaks(function):
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=False)
    options = {} if function is noncausal_ssd else {"chunk": 8}
    arguments = make_inputs(function, L=20, dtype=torch.float32)
    expected = run(function, arguments, **options)
    assert_close(run(compiled, arguments, **options), expected, 1e-5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(compiled(**arguments, **options), expected["output"])


@pytest.mark.slow
@functions
def test_compile_for_every_length(function):
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    options = {} if function is noncausal_ssd else {"chunk": 8}
    for length in (20, 31, 45):
        arguments = make_inputs(function, L=length, dtype=torch.float32)
        assert_close(run(compiled, arguments, **options), run(function, arguments, **options), 1e-5)


class Mixer(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


@functions
def test_export_with_a_dynamic_batch(function):
    arguments = make_inputs(function, L=70, dtype=torch.float32)
    batched = [arguments[name].ndim > 1 for name in arguments]
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} if yes else None for yes in batched)
    program = torch.export.export(Mixer(function), tuple(arguments.values()), dynamic_shapes={"tensors": dynamic})
    other = make_inputs(function, seed=1, b=3, L=70, dtype=torch.float32)
    torch.testing.assert_close(program.module()(*other.values()), function(**other))


@functions
def test_torch_function_sees_the_call(function):
    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    arguments = make_inputs(function, L=9)
    with Watch():
        y = function(**arguments)
    assert seen[0] is function
    torch.testing.assert_close(y, function(**arguments))


def test_flops_are_those_of_the_products():
    b, L, h, p, g, n, q = 2, 96, 4, 8, 2, 16, 32
    sizes = dict(b=b, L=L, h=h, p=p, g=g, n=n)
    with FlopCounterMode(display=False) as counter:
        noncausal_ssd(**make_inputs(noncausal_ssd, **sizes))
    assert counter.get_total_flops() == 2 * 2 * b * L * h * n * p
    causal = make_inputs(causal_ssd, **sizes)
    with FlopCounterMode(display=False) as counter:
        causal_ssd(**causal, chunk=q)
    inside = b * L * q * (g * n + h * p)
    across = 2 * b * (L - q) * h * n * p + b * h * 2 * 2 * n * p  # two of three chunks pass on their states
    assert counter.get_total_flops() == 2 * (inside + across)
    with FlopCounterMode(display=False) as counter:
        quasi_separable_ssd(**make_inputs(quasi_separable_ssd, **sizes), chunk=q)
    assert counter.get_total_flops() == 2 * 2 * (inside + across)


def test_meta_tensors():
    for function in REFERENCES:
        arguments = {name: t.to("meta") for name, t in make_inputs(function, L=70).items()}
        assert function(**arguments).shape == (2, 70, 4, 3)


def test_quasi_separable_of_one_token_is_its_diagonal():
    arguments = make_inputs(quasi_separable_ssd, L=1)
    expected = arguments["diagonal"][..., None] * arguments["x"]
    torch.testing.assert_close(quasi_separable_ssd(**arguments), expected)


def test_recorded_vssd():
    record = RECORDED["vssd_core"]
    inputs = {
        name: torch.from_numpy(reference_input(spec["shape"], spec["seed"])).requires_grad_()
        for name, spec in record["inputs"].items()
    }
    A = -inputs["A_log"].exp()
    y = noncausal_ssd(inputs["x"], inputs["dt"], A, inputs["B"], inputs["C"], inputs["D"])
    check_recorded("y", y, record["outputs"]["y"])
    loss = (y * torch.from_numpy(reference_input(tuple(y.shape), seed=7))).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()))
    for name, grad in zip(inputs, grads, strict=True):
        check_recorded(name, grad, record["grads"]["inputs"][name])


def test_recorded_efficientvim():
    """The hidden-state mixer around `weighted_state` and `read_state`, on a 3 x 5 map."""
    record = RECORDED["efficientvim_mixer"]
    weights = {name: torch.from_numpy(fill(name, tuple(shape))).requires_grad_() for name, shape in record["keys"]}
    spec = record["inputs"]["x"]
    x = torch.from_numpy(reference_input(spec["shape"], spec["seed"])).requires_grad_()
    n = weights["A"].shape[0]
    u = F.conv1d(x, weights["BCdt_proj.conv.weight"]).unflatten(2, (3, 5))
    u = F.conv2d(u, weights["dw.conv.weight"], padding=1, groups=3 * n).flatten(2).mT
    B, C, dt = u.split(n, dim=2)
    shares = (dt + weights["A"]).softmax(1)
    state = weighted_state(x.mT[:, :, None], B * shares)[:, 0].mT  # (b, channels, n)
    h, z = F.conv1d(state, weights["hz_proj.conv.weight"]).chunk(2, 1)
    h = F.conv1d(h * F.silu(z) + h * weights["D"], weights["out_proj.conv.weight"])
    y = read_state(h.mT[:, None], C)[:, :, 0].mT.unflatten(2, (3, 5))
    check_recorded("y", y, record["outputs"]["y"])
    check_recorded("h", h, record["outputs"]["h"])
    loss = sum((t * torch.from_numpy(reference_input(tuple(t.shape), seed=7))).sum() for t in (y, h))
    grads = torch.autograd.grad(loss, [x, *weights.values()])
    check_recorded("x", grads[0], record["grads"]["inputs"]["x"])
    for name, grad in zip(weights, grads[1:], strict=True):
        norm = record["grads"]["params"][name]
        assert float(grad.norm()) == pytest.approx(norm, rel=1e-3, abs=1e-5), name


def check_recorded(name, ours, recorded):
    expected = np.asarray(recorded["data"]).reshape(recorded["shape"])
    error = np.abs(ours.detach().numpy() - expected).max()
    assert error <= 1e-5 * max(1.0, expected.std()), (name, error)


@pytest.mark.parametrize("groups", [1, 2])
def test_state_by_hand(groups):
    x, weight = torch.randn(2, 6, 4, 3), torch.rand(2, 6, 4)
    B, C = torch.randn(2, 2, 6, groups, 5)
    state = weighted_state(x, B, weight)
    per_head = B.repeat_interleave(4 // groups, 2)
    torch.testing.assert_close(state, torch.einsum("blh,blhn,blhp->bhnp", weight, per_head, x))
    y = read_state(state, C)
    torch.testing.assert_close(y, torch.einsum("blhn,bhnp->blhp", C.repeat_interleave(4 // groups, 2), state))


def changed(function, **changes):
    return {**make_inputs(function, L=6, dtype=torch.float32), **changes}


@pytest.mark.parametrize(
    ("function", "changes", "error", "message"),
    [
        (causal_ssd, dict(x=torch.zeros(2, 6, 4)), ValueError, r"x must be \(batch, tokens, heads, channels"),
        (causal_ssd, dict(x=torch.zeros(2, 0, 4, 3)), ValueError, "must be at least 1"),
        (causal_ssd, dict(delta=torch.zeros(2, 6, 3)), ValueError, r"delta must be .* = \(2, 6, 4\), got \(2, 6, 3\)"),
        (noncausal_ssd, dict(A=torch.zeros(4, 2)), ValueError, r"A must be \(heads\) = \(4,\), got \(4, 2\)"),
        (noncausal_ssd, dict(B=torch.zeros(2, 6, 3, 5)), ValueError, "B has 3 groups, which do not divide the 4 heads"),
        (noncausal_ssd, dict(B=torch.zeros(2, 5, 5)), ValueError, r"B must be \(batch, tokens, \[groups,\] states\)"),
        (causal_ssd, dict(C=torch.zeros(2, 6, 2, 4)), ValueError, "B and C must have the same shape"),
        (causal_ssd, dict(chunk=0), ValueError, "chunk must be at least 1"),
        (causal_ssd, dict(x=[1.0]), TypeError, "x must be a tensor, got list"),
        (causal_ssd, dict(D=1.0), TypeError, "D must be a tensor or None, got float"),
        (causal_ssd, dict(A=-torch.ones(4).half()), TypeError, r"A must be torch.float32 .*pass A.to\(torch.float32\)"),
        (causal_ssd, dict(B=torch.zeros(2, 6, 5).double()), TypeError, "B is torch.float64 but x is torch.float32"),
        (causal_ssd, dict(C=torch.zeros(2, 6, 5).long()), TypeError, "C must be float32, bfloat16"),
        (causal_ssd, dict(D=torch.zeros(4, device="meta")), ValueError, "D is on meta but x is on cpu"),
        (quasi_separable_ssd, dict(delta=torch.zeros(2, 6, 4)), ValueError, "delta must have the 2 directions"),
        (quasi_separable_ssd, dict(C=torch.zeros(2, 6, 3, 5)), ValueError, "C must have the 2 directions"),
        (quasi_separable_ssd, dict(diagonal=torch.zeros(2, 6)), ValueError, r"diagonal must be \(heads\) or"),
        (quasi_separable_ssd, dict(diagonal=torch.zeros(2, 6, 3)), ValueError, "diagonal must be"),
        (quasi_separable_ssd, dict(diagonal=None), TypeError, "diagonal must be a tensor, got NoneType"),
        (quasi_separable_ssd, dict(chunk=-1), ValueError, "chunk must be at least 1"),
    ],
)
def test_bad_input_is_named(function, changes, error, message):
    with pytest.raises(error, match=message):
        function(**changed(function, **changes))


def test_bad_states_are_named():
    state, C = torch.zeros(2, 4, 5, 3), torch.zeros(2, 6, 5)
    with pytest.raises(ValueError, match="C reads 4 states but the state has 5"):
        read_state(state, C[..., :4])
    with pytest.raises(ValueError, match=r"state must be \(batch, heads, states, channels\)"):
        read_state(state[0], C)
    with pytest.raises(ValueError, match="do not divide the 4 heads"):
        read_state(state, C[:, :, None].expand(-1, -1, 3, -1))
    with pytest.raises(ValueError, match=r"weight must be \(batch, tokens, heads\)"):
        weighted_state(torch.zeros(2, 6, 4, 3), C, torch.zeros(2, 6))
