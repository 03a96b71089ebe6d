"""The compiled kernels at the shapes that models use: parity, determinism, memory, compilers, CUDA graphs."""

import sys
from pathlib import Path

import pytest
import torch

from visionssm.ops import available_backends, causal_conv1d, selective_scan
from visionssm.ops.selective_scan.triton import config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from scan_shapes import MODEL_SHAPES, VMAMBA_TINY, make_inputs  # noqa: E402

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
LEAVES = ("u", "delta", "A", "B", "C", "D", "delta_bias", "dt_weight")


def leaves_of(inputs):
    leaves = {n: inputs[n].detach().clone().requires_grad_() for n in LEAVES if n in inputs}
    return leaves, {n: x for n, x in inputs.items() if n not in leaves}


def forward_backward(inputs, backend=None, seed=1, **options):
    leaves, rest = leaves_of(inputs)
    y = selective_scan(**leaves, **rest, **options, backend=backend)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
    return y.detach(), dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), weight), strict=True))


def relative_error(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)).item()


def test_triton_is_the_preferred_backend():
    assert available_backends()[0] == "triton"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", MODEL_SHAPES, ids=lambda s: s.name)
@pytest.mark.parametrize("walking", [False, True], ids=["route by route", "all routes in one program"])
def test_model_shapes(shape, dtype, walking, monkeypatch):
    if walking:
        monkeypatch.setattr(config, "segments", lambda *_: 1)
        monkeypatch.setattr(config, "routes_per_program", lambda routes, *_: routes)
    inputs = make_inputs(shape, dtype, "cuda", batch=2)
    double = {n: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in inputs.items()}
    y, grads = forward_backward(inputs, "triton")
    expected, expected_grads = forward_backward(double, "portable")
    assert y.dtype == dtype
    errors = {"out": relative_error(y, expected)} | {n: relative_error(grads[n], expected_grads[n]) for n in grads}
    assert all(e <= TOLERANCE[dtype] for e in errors.values()), errors


def test_long_sequence():
    """200,000 steps, split among programs."""
    g = torch.Generator().manual_seed(0)
    L, d = 200_000, 32
    u, delta, B, C = (torch.randn(1, L, n, generator=g).cuda() for n in (d, d, 1, 1))
    inputs = dict(
        u=u,
        delta=delta - 3,
        A=-torch.rand(d, 1, generator=g).cuda(),
        B=B,
        C=C,
        order=torch.randperm(L, generator=g)[None].cuda(),
    )
    y, grads = forward_backward(inputs, "triton")
    double = {n: x if n == "order" else x.double() for n, x in inputs.items()}
    expected, expected_grads = forward_backward(double, "portable")
    assert relative_error(y, expected) < 2e-5
    assert all(relative_error(grads[n], expected_grads[n]) < 1e-4 for n in grads)


def test_rows_beyond_two_to_the_31():
    """The last image of a batch whose elements do not fit in 32 bits equals the same image alone."""
    b, L, K, d = 18, 66_800, 4, 512
    if torch.cuda.mem_get_info()[0] < 30 * 2**30:
        pytest.skip("needs 30 GiB of free GPU memory")
    g = torch.Generator(device="cuda").manual_seed(0)
    u = torch.randn(b, L, K, d, generator=g, device="cuda", dtype=torch.bfloat16)
    rows = torch.randn(b, L, K, 18, generator=g, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(K, d, 16, generator=g, device="cuda") * 0.1
    A = -torch.rand(K, d, 1, generator=g, device="cuda") - 0.1

    def scan(u, rows):
        delta, B, C = rows.split([16, 1, 1], -1)
        return selective_scan(u, delta, A, B, C, dt_weight=weight)

    assert u.numel() > 2**31
    # a single image may be split among more programs than the batch, so the sums may differ by rounding
    torch.testing.assert_close(scan(u, rows)[-1:], scan(u[-1:], rows[-1:]), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [VMAMBA_TINY[1], VMAMBA_TINY[3]], ids=lambda s: s.name)
def test_same_bits_twice(shape):
    inputs = make_inputs(shape, torch.bfloat16, "cuda", batch=16)
    first, second = forward_backward(inputs), forward_backward(inputs)
    assert torch.equal(first[0], second[0]) and all(torch.equal(first[1][n], second[1][n]) for n in first[1])


def test_memory_of_a_training_step():
    """What is kept between forward and backward stays below a third of the published path's (13 U elements)."""
    shape = VMAMBA_TINY[0]
    inputs = make_inputs(shape, torch.bfloat16, "cuda", batch=32)
    leaves, rest = leaves_of(inputs)
    selective_scan(**leaves, **rest).sum().backward()  # compile
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = selective_scan(**leaves, **rest)
    kept = torch.cuda.memory_allocated() - before
    elements = leaves["u"].numel()
    assert kept < 13 * 2 * elements / 3, f"{kept / elements:.1f} bytes per element"
    del y


@pytest.mark.parametrize(("routes", "most"), [(1, 6.5), (4, 1.5)])
def test_memory_of_the_output(monkeypatch, routes, most):
    """Four routes of one program need no output per route: beyond the input, one map in its dtype."""
    monkeypatch.setattr(config, "routes_per_program", lambda *_: routes)
    inputs = make_inputs(VMAMBA_TINY[1], torch.bfloat16, "cuda", batch=64)
    with torch.no_grad():
        selective_scan(**inputs)  # compile
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        selective_scan(**inputs)
        torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before < most * inputs["u"].nbytes


def test_compile_without_graph_breaks():
    inputs = make_inputs(VMAMBA_TINY[1], torch.bfloat16, "cuda", batch=4)
    leaves, rest = leaves_of(inputs)

    def step(*tensors):
        return selective_scan(**dict(zip(leaves, tensors, strict=True)), **rest).float().square().mean()

    expected = torch.autograd.grad(step(*leaves.values()), list(leaves.values()))
    compiled = torch.compile(step, fullgraph=True)
    actual = torch.autograd.grad(compiled(*leaves.values()), list(leaves.values()))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-5)


def test_cuda_graph_of_forward_and_backward():
    inputs = make_inputs(VMAMBA_TINY[2], torch.bfloat16, "cuda", batch=4)
    leaves, rest = leaves_of(inputs)
    weight = torch.randn_like(inputs["u"])

    def step():
        y = selective_scan(**leaves, **rest)
        return y, torch.autograd.grad(y, list(leaves.values()), weight)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grads = step()
    with torch.no_grad():
        leaves["u"].copy_(torch.randn_like(leaves["u"]))
    graph.replay()
    expected_y, expected_grads = step()
    assert torch.equal(y, expected_y)
    assert all(torch.equal(a, e) for a, e in zip(grads, expected_grads, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device():
    inputs = make_inputs(VMAMBA_TINY[3], torch.float32, "cuda:1", batch=2)
    y, _ = forward_backward(inputs, "triton")
    expected, _ = forward_backward(inputs, "portable")
    assert relative_error(y, expected) < 2e-5


@pytest.mark.parametrize("states", [1, 16])
def test_NaN_in_the_step_size_reaches_output_and_gradients(states):
    shape = next(s for s in MODEL_SHAPES if s.states == states)
    inputs = make_inputs(shape, torch.bfloat16, "cuda", batch=1)
    inputs["delta"] = inputs["delta"].clone()
    inputs["delta"][0, 5] = float("nan")
    y, grads = forward_backward(inputs, "triton")
    assert y[0, 5].isnan().all() and grads["delta"].isnan().any() and grads["A"].isnan().all()


def test_a_table_is_read_on_other_streams_than_the_first():
    """Tables with repeats, whose visits are made by the first call, right before another stream reads them."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(2, 500, 2, 64, generator=g).cuda()
    small = torch.randn(2, 500, 2, 1, generator=g).cuda()
    A = -torch.rand(2, 64, 1, generator=g).cuda()
    orders = [torch.randint(0, 500, (2, 700), generator=g) for _ in range(8)]
    expected = [selective_scan(u, u, A, small, small, order=o.cuda()) for o in orders]
    streams = [torch.cuda.Stream() for _ in range(3)]
    for order, e in zip(orders, expected, strict=True):
        order = order.cuda()
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                y = selective_scan(u, u, A, small, small, order=order)
            stream.synchronize()
            assert torch.equal(y, e)


@pytest.mark.parametrize("name", ["Vim-S", "LocalVim-S"])
def test_causal_convolution_in_bfloat16(name, monkeypatch):
    shape = next(s for s in MODEL_SHAPES if s.name == name)
    order = shape.order("cuda")
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(4, shape.tokens, 1, shape.channels, generator=g, device="cuda")
    weight = torch.randn(len(order), shape.channels, 4, generator=g, device="cuda")

    def run(backend, dtype):
        monkeypatch.setenv("VISIONSSM_BACKEND", backend)
        leaves = [t.to(dtype).requires_grad_() for t in (x.bfloat16(), weight)]
        y = causal_conv1d(*leaves, order=order, activation="silu")
        return y, *torch.autograd.grad(y.double().square().sum(), leaves)

    for a, e in zip(run("triton", torch.bfloat16), run("portable", torch.float64), strict=True):
        assert relative_error(a, e) < TOLERANCE[torch.bfloat16]
