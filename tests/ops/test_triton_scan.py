"""The Triton kernels against the step-by-step reference: compiled where there is a GPU, else interpreted.

The interpreter must be chosen before triton is imported, which tests/conftest.py does.
"""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from test_selective_scan import NAMES, assert_close, cases, make_inputs, make_order, run

pytest.importorskip("triton")
from visionssm.ops import selective_scan, triton_support  # noqa: E402
from visionssm.ops.selective_scan.triton import config, launch, tables  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def not_a_number(monkeypatch):
    """Uninitialised memory holds NaN, so that reading or returning it shows."""
    new_empty = torch.Tensor.new_empty

    def nan_filled(self, *args, **kwargs):
        x = new_empty(self, *args, **kwargs)
        return x.fill_(float("nan")) if x.is_floating_point() else x

    monkeypatch.setattr(torch.Tensor, "new_empty", nan_filled)


def on_device(x):
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else x


def in_float64(args):
    return {n: None if x is None else x.double() for n, x in args.items()}


@pytest.fixture
def walking(monkeypatch):
    """Programs walk all routes that they may, as they do where there is work enough."""
    monkeypatch.setattr(config, "_walk", lambda parts, *_: parts)
    monkeypatch.setattr(config, "routes_per_program", lambda routes, *_: routes)


def compare(dtype=torch.float32, tolerance=None, **case):
    """Output and every gradient of the kernels against the float64 reference on the same numbers."""
    args, options = make_inputs(**case, dtype=dtype)
    expected = run(in_float64(args), options, "reference")
    y, grads = run({n: on_device(x) for n, x in args.items()}, {n: on_device(x) for n, x in options.items()}, "triton")
    assert y.dtype == dtype and all(grads[n].dtype == args[n].dtype for n in grads if n in args)
    actual = y.double().cpu(), {n: g.double().cpu() for n, g in grads.items()}
    assert_close(actual, expected, tolerance or TOLERANCE[dtype])


@pytest.mark.parametrize("L", [1, 2, 3, 17])
@pytest.mark.parametrize(("N", "rank"), [(1, 3), (3, 0)])
def test_lengths(L, N, rank):
    compare(seed=L, b=1, L=L, k=2, d=5, N=N, rank=rank, shared=("u",))


@pytest.mark.parametrize("N", [1, 4])
@pytest.mark.parametrize("kind", ["raster", "permutation", "padded", "several"])
@pytest.mark.parametrize("out", ["sum", "route", "step"])
@pytest.mark.usefixtures("walking")
def test_orders_and_outputs(N, kind, out):
    compare(seed=1, b=1, L=7, T=9, k=2, d=3, N=N, kind=kind, out=out)


@pytest.mark.parametrize(("N", "k", "routes"), [(1, 2, 1), (1, 4, 2), (4, 4, 2), (2, 3, 3), (17, 2, 2)])
@pytest.mark.parametrize("kind", ["permutation", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_routes_of_one_program(monkeypatch, N, k, routes, kind, dtype):
    monkeypatch.setattr(config, "routes_per_program", lambda *_: routes)
    compare(seed=18, b=2, L=18, T=19, k=k, d=3, N=N, kind=kind, shared=("u",), dtype=dtype)


@pytest.mark.parametrize(("d", "span"), [(33, 3), (64, 2)])
@pytest.mark.parametrize("kind", ["permutation", "padded", "several"])
def test_blocks_of_one_program(monkeypatch, d, span, kind):
    monkeypatch.setattr(config, "blocks_per_program", lambda *_: span)
    compare(seed=20, b=1, L=9, T=10, k=2, d=d, N=17, kind=kind)


@pytest.mark.parametrize("kind", ["permutation", "padded", "several"])
def test_many_states(kind):
    """In tiles: more of them than a lane holds."""
    compare(seed=25, b=1, L=9, T=10, k=2, d=3, N=18, rank=3, kind=kind, out="step", index="step")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_nan_in_the_step_size_reaches_the_output(dtype):
    args, options = make_inputs(26, b=1, L=6, k=1, d=3, N=1, dtype=dtype)
    args["delta"][0, 2, 0, 1] = float("nan")
    y = selective_scan(**{n: on_device(x) for n, x in args.items()}, **options, backend="triton")
    assert y[0, 2, 1].isnan() and not y[0, :, 0].isnan().any()


@pytest.mark.parametrize("u_index", ["token", "step"])
@pytest.mark.parametrize("index", ["token", "step"])
@pytest.mark.parametrize("kind", ["permutation", "padded"])
@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.usefixtures("walking")
def test_storage_by_step(u_index, index, kind, rank):
    compare(seed=2, b=1, L=9, T=10, k=2, d=3, N=1, rank=rank, kind=kind, u_index=u_index, index=index, out="step")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("walking")
def test_tensors_shared_by_routes(name):
    compare(seed=3, b=1, L=6, k=3, d=2, N=1, rank=2, shared=(name,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("N", "rank"), [(1, 0), (1, 3), (4, 3)])
def test_low_precision(dtype, N, rank):
    compare(seed=4, dtype=dtype, b=1, L=9, k=2, d=5, N=N, rank=rank)


@pytest.mark.parametrize("no", ["no_C", "no_D", "no_bias"])
def test_what_may_be_absent(no):
    compare(seed=5, b=1, L=7, k=2, d=3, N=1, **{no: True})


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(("N", "k"), [(1, 2), (4, 1)])
@pytest.mark.parametrize("given", [dict(initial=True), dict(last=True), dict(initial=True, last=True)])
def test_states_given_and_returned(monkeypatch, N, k, parts, given):
    monkeypatch.setattr(config, "segments", lambda *_: parts)
    compare(seed=21, b=2, L=37, k=k, d=3, N=N, **given)


@pytest.mark.usefixtures("walking")
def test_states_of_routes_walked_by_one_program():
    compare(seed=22, b=1, L=9, k=4, d=3, N=1, shared=("u",), initial=True, last=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("N", "rank"), [(1, 3), (4, 0)])
def test_without_softplus(dtype, N, rank):
    compare(seed=23, b=1, L=9, T=10, k=2, d=3, N=N, rank=rank, kind="padded", softplus=False, dtype=dtype)


@pytest.mark.parametrize(("d", "N"), [(33, 1), (70, 1), (17, 16), (2, 64), (1, 2)])
def test_channels_and_states_that_fill_no_block(d, N):
    compare(seed=6, b=1, L=5, k=1, d=d, N=N)


@pytest.mark.parametrize(
    ("N", "rank", "dtype", "kind", "index", "word"),
    [
        (1, 3, torch.float32, "permutation", "token", 1),
        (1, 2, torch.bfloat16, "padded", "token", 2),
        (2, 2, torch.float16, "permutation", "token", 2),
        (4, 4, torch.float32, "padded", "token", 2),
        (4, 4, torch.bfloat16, "padded", "step", 4),
        (16, 16, torch.float32, "permutation", "token", 2),
    ],
)
def test_rows_that_lie_one_after_the_other(monkeypatch, N, rank, dtype, kind, index, word):
    """Step size, B and C as one projection leaves them: one address, and as few loads as they are aligned for."""
    seen = []
    choose = launch._word
    monkeypatch.setattr(launch, "_word", lambda *a: seen.append((a[2], choose(*a))) or seen[-1][1])
    g = torch.Generator().manual_seed(0)
    L, T, k, d = 9, 10, 2, 5
    order = make_order(kind, k, L, T, g)
    u = torch.randn(1, L, d, generator=g).to(dtype)
    rows = torch.randn(1, order.shape[1] if index == "step" else L, k, rank + 2 * N, generator=g).to(dtype)
    A, weight = -torch.rand(k, d, N, generator=g) - 0.1, torch.randn(k, d, rank, generator=g)

    def scan(u, rows, A, weight, order, backend):
        leaves = [x.detach().requires_grad_() for x in (u, rows, A, weight)]
        delta, B, C = leaves[1].split([rank, N, N], -1)
        y = selective_scan(
            leaves[0], delta, leaves[2], B, C, dt_weight=leaves[3], order=order, index=index, backend=backend
        )
        return y, *torch.autograd.grad(y.double().square().sum(), leaves)

    tensors = u, rows, A, weight
    expected = scan(*(x.double() for x in tensors), order, "reference")
    actual = scan(*map(on_device, (*tensors, order)), "triton")
    assert set(seen) == {(True, word)}
    for a, e in zip(actual, expected, strict=True):
        tolerance = TOLERANCE[dtype] * (2 if dtype == torch.bfloat16 else 1)
        torch.testing.assert_close(a.double().cpu(), e, rtol=tolerance, atol=tolerance * e.abs().max().item())


@pytest.mark.parametrize(
    ("of_B", "of_C"),
    [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)],
)
def test_projections_of_different_dtypes(of_B, of_C):
    """Each is read in its own words, or element by element."""
    args, options = make_inputs(27, b=1, L=9, k=2, d=3, N=4, dtype=torch.float32)
    args |= dict(B=args["B"].to(of_B), C=args["C"].to(of_C))
    expected = run(in_float64(args), options, "reference")
    y, grads = run({n: on_device(x) for n, x in args.items()}, {n: on_device(x) for n, x in options.items()}, "triton")
    actual = y.double().cpu(), {n: g.double().cpu() for n, g in grads.items()}
    assert grads["B"].dtype == of_B and grads["C"].dtype == of_C
    assert_close(actual, expected, 1e-2)


@pytest.mark.skipif(DEVICE == "cuda", reason="memory that is not touched costs nothing on a CPU alone")
@pytest.mark.parametrize(("name", "N"), [("u", 1), ("delta", 1), ("B", 17), ("C", 17)])
def test_routes_that_lie_far_apart(name, N):
    """The third route begins 2^31 elements after the first, though one stride still has 32 bits."""
    args, options = make_inputs(28, b=1, L=2, k=3, d=2, N=N, dtype=torch.bfloat16)
    expected, expected_grads = run(args, options, "reference")
    x = args[name]
    args[name] = torch.empty(2**31 + 256, dtype=x.dtype).as_strided(x.shape, (256, 64, 2**30, 1)).copy_(x)
    leaf = args[name].requires_grad_()
    y = selective_scan(**args, **options, backend="triton")
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(y.dtype)
    (grad,) = torch.autograd.grad((y * g).sum(), [leaf])
    assert_close((y.detach(), {name: grad}), (expected, {name: expected_grads[name]}), 2e-2)


@pytest.mark.parametrize("walk", [1, 2])
@pytest.mark.parametrize("kind", ["raster", "padded"])
def test_rows_fetched_ahead(monkeypatch, kind, walk):
    monkeypatch.setattr(config, "prefetch", lambda *_: True)
    monkeypatch.setattr(config, "routes_per_program", lambda *_: walk)
    compare(seed=24, b=1, L=35, T=36, k=2, d=3, N=1, rank=2, kind=kind, shared=("u",))


def test_words_are_taken_where_rows_are_aligned():
    rows = torch.zeros(2, 3, 2, 12, dtype=torch.bfloat16)
    delta, B, C = rows.split([4, 4, 4], -1)
    assert launch._joined(delta, B, C) and launch._word(B, C, True) == 4
    assert launch._word(B, C, False) == 4 and launch._word(rows[..., 2:6], rows[..., 6:10], False) == 2
    assert launch._word(rows[..., 1:5], C, False) == 1
    assert not launch._joined(delta, C, B) and not launch._joined(delta, B, C.float())
    rows = torch.zeros(2, 3, 2, 7, dtype=torch.bfloat16)
    delta, B, C = rows.split([5, 1, 1], -1)
    assert launch._joined(delta, B, C) and launch._word(B, C, True) == 1
    assert launch._alignment(delta) == 7 % 2


@pytest.mark.parametrize("rank", [1, 16, 17])
def test_ranks(rank):
    # sums of 17 normal terms reach raw step sizes of 10, whose gradients are long sums
    compare(seed=7, b=1, L=5, k=1, d=3, N=1, rank=rank, tolerance=3e-5)


@pytest.mark.parametrize(("N", "L", "k", "parts"), [(1, 37, 2, 3), (2, 70, 1, 2)])
def test_sequences_split_among_programs(monkeypatch, N, L, k, parts):
    monkeypatch.setattr(config, "segments", lambda *_: parts)
    compare(seed=8, b=1, L=L, k=k, d=3, N=N, rank=0)


def test_states_are_recomputed_within_a_chunk():
    # one chunk and a bit: 64 steps between saved states with several states per channel
    compare(seed=9, b=1, L=66, k=1, d=2, N=2)


@pytest.mark.parametrize("case", [dict(kind="padded"), dict(kind="several"), dict(kind="permutation", k=2)])
@pytest.mark.parametrize("short", [False, True])
def test_rows_are_read_again_where_registers_are_short(monkeypatch, short, case):
    """Over the end of a chunk, and in two segments."""
    monkeypatch.setattr(config, "registers_are_short", lambda *_: short)
    monkeypatch.setattr(config, "segments", lambda *_: 2)
    compare(**dict(seed=27, b=1, L=70, k=1, d=3, N=2, rank=3) | case)


@pytest.mark.parametrize(
    ("states", "dtype", "capability", "short"),
    [
        (16, torch.bfloat16, (9, 0), False),
        (16, torch.bfloat16, (8, 0), True),
        (16, torch.float32, (9, 0), True),
        (8, torch.float32, (8, 0), False),
    ],
)
def test_registers_are_short_by_rule(monkeypatch, states, dtype, capability, short):
    monkeypatch.setattr(config, "_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert config.registers_are_short(states, dtype, torch.device("cuda", 0)) is short


def test_wide_offsets(monkeypatch):
    monkeypatch.setattr(launch, "_wide_offsets", lambda scan: True)
    compare(seed=10, b=2, L=9, k=2, d=3, N=2, rank=2)


def test_views_with_gaps():
    """delta, B and C as a projection leaves them: slices of one wide row; u as a slice, its gradient expanded."""
    g = torch.Generator().manual_seed(0)
    rows, wide = torch.randn(1, 9, 2, 5, generator=g), torch.randn(1, 9, 7, generator=g)
    A, weight = -torch.rand(2, 4, 1, generator=g) - 0.1, torch.randn(2, 4, 3, generator=g)

    def scan(rows, wide, A, weight, backend):
        leaves = [x.clone().requires_grad_() for x in (rows, wide, A, weight)]
        delta, B, C = leaves[0].split([3, 1, 1], -1)
        y = selective_scan(
            leaves[1][..., 2:6], delta, leaves[2], B, C, dt_weight=leaves[3], out="route", backend=backend
        )
        return y, torch.autograd.grad(y.sum(), leaves)

    tensors = rows, wide, A, weight
    expected, expected_grads = scan(*(x.double() for x in tensors), "reference")
    y, grads = scan(*(x.to(DEVICE) for x in tensors), "triton")
    for a, e in zip((y, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(a.double().cpu(), e, rtol=1e-5, atol=1e-5)


def test_channels_last_input_is_copied():
    args, options = make_inputs(11, b=1, L=6, k=1, d=4, N=1, dtype=torch.float32)
    args["u"] = args["u"].transpose(1, 3).contiguous().transpose(1, 3)
    expected = run(in_float64(args), options, "reference")
    y, grads = run({n: on_device(x) for n, x in args.items()}, {n: on_device(x) for n, x in options.items()}, "triton")
    assert_close((y.double().cpu(), {n: g.double().cpu() for n, g in grads.items()}), expected, 1e-5)


def test_out_dtype():
    args, options = make_inputs(12, b=1, L=6, k=2, d=4, N=1, dtype=torch.float16)
    args["u"] *= 1e3
    args["C"] *= 1e2  # beyond the range of float16
    tensors = {n: on_device(x) for n, x in args.items()}
    options = {n: on_device(x) for n, x in options.items()}
    y = selective_scan(**tensors, **options, out_dtype=torch.float32, backend="triton")
    expected = selective_scan(
        **in_float64(args),
        **{n: x.cpu() if isinstance(x, torch.Tensor) else x for n, x in options.items()},
        backend="reference",
    )
    assert y.dtype == torch.float32 and expected.abs().max() > 65504
    torch.testing.assert_close(y.double().cpu(), expected, rtol=4e-3, atol=4e-3 * expected.abs().max().item())


def test_extreme_step_sizes():
    """Saturated and vanishing step sizes: no NaN, and small ones keep their relative accuracy in float32."""
    delta = torch.tensor([-60.0, -15.0, -5.0, 0.0, 5.0, 30.0, 90.0]).view(1, 1, 1, 7).expand(1, 4, 1, 7)
    u, B = torch.ones(1, 4, 7), torch.ones(1, 4, 1)
    A = -torch.full((7, 1), 0.5)
    y = selective_scan(*map(on_device, (u, delta, A, B, B)), backend="triton").double().cpu()
    expected = selective_scan(u.double(), delta.double(), A.double(), B.double(), B.double(), backend="reference")
    torch.testing.assert_close(y, expected, rtol=5e-6, atol=0)  # exp(-60) alone loses 60 units


def test_same_bits_twice():
    args, options = make_inputs(13, b=1, L=7, T=9, k=2, d=5, N=2, rank=2, kind="several", dtype=torch.float32)
    tensors = {n: on_device(x) for n, x in args.items()}
    options = {n: on_device(x) for n, x in options.items()}
    (y1, g1), (y2, g2) = run(tensors, options, "triton"), run(tensors, options, "triton")
    assert torch.equal(y1, y2) and all(torch.equal(g1[n], g2[n]) for n in g1)


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(case=cases)
@pytest.mark.usefixtures("walking")
def test_random_cases(case):
    small = {name: min(case[name], most) for name, most in (("b", 2), ("k", 2), ("L", 12), ("T", 9))}
    compare(**case | small, tolerance=2e-5)


@pytest.mark.usefixtures("walking")
def test_no_result_per_route_exists(monkeypatch):
    """Where one program walks all routes, their sum needs no pass of its own, forward and backward."""
    monkeypatch.setattr(launch, "_merge", None)
    compare(seed=19, b=1, L=6, k=4, d=3, N=1, shared=("u",))


def test_compiles_without_graph_breaks():
    args, options = make_inputs(16, b=1, L=5, k=2, d=3, N=1, rank=2, dtype=torch.float32)
    leaves = {n: on_device(x).requires_grad_() for n, x in args.items()}
    options = {n: on_device(x) for n, x in options.items()}

    def loss(*tensors):
        return selective_scan(**dict(zip(leaves, tensors, strict=True)), **options, backend="triton").square().sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    actual = torch.autograd.grad(compiled(*leaves.values()), list(leaves.values()))
    expected = torch.autograd.grad(loss(*leaves.values()), list(leaves.values()))
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


def test_what_a_table_is_found_to_do():
    order = torch.tensor([[0, 1, 2], [2, 1, 0]])
    use = tables.table_use(order, 3)
    assert (use.padded, use.full, use.repeats) == (False, True, False) and use.entries.dtype == torch.int32
    assert tables.table_use(order, 3) is use  # found once
    order[1, 0] = -1
    use = tables.table_use(order, 3)  # and again where the tensor has changed
    assert (use.padded, use.full, use.repeats) == (True, False, False)
    order = torch.tensor([[0, 2, 0], [1, -1, 0]])
    assert tables.table_use(order, 3)[1:] == (True, False, True)
    merged, apart = tables.table_visits(order, 3, True), tables.table_visits(order, 3, False)

    def rows(visits, bin):
        return visits.index[visits.start[bin] : visits.start[bin + 1]].tolist()

    assert [rows(merged, i) for i in range(3)] == [[0, 4, 5], [1], [2]]
    assert [rows(apart, i) for i in range(6)] == [[0, 4], [5], [], [1], [2], []]
    with pytest.raises(ValueError, match="must lie in"):
        tables.table_use(torch.tensor([[0, 3]]), 3)


@pytest.mark.parametrize(
    ("programs", "steps", "expected"),
    [(10000, 3136, 1), (528, 3136, 4), (529, 3136, 1), (24, 66800, 88), (144, 784, 12), (12, 196, 3), (8, 100, 1)],
)
def test_sequences_are_split_where_programs_are_few(programs, steps, expected):
    assert config.segments(programs, 1, steps, 132) == expected


@pytest.mark.parametrize(
    ("routes", "channels", "programs", "expected"),
    [(4, 96, 1536, 1), (4, 96, 4224, 2), (4, 96, 8448, 4), (3, 96, 6336, 3), (4, 87, 8448, 1)],
)
def test_programs_walk_several_routes_where_memory_is_short(monkeypatch, routes, channels, programs, expected):
    assert config.routes_per_program(routes, channels, programs, 1, 132) == 1
    monkeypatch.setattr(config, "LOW_MEMORY", True)
    assert config.routes_per_program(routes, channels, programs, 1, 132) == expected


@pytest.mark.parametrize(
    ("states", "rank", "programs", "expected"),
    [(32, 6, 12 * 2112, 12), (32, 6, 6 * 2112, 6), (32, 24, 12 * 2112, 1), (1, 6, 12 * 2112, 1), (32, 0, 12, 1)],
)
def test_programs_walk_several_blocks_where_programs_are_many(states, rank, programs, expected):
    assert config.blocks_per_program(12, states, rank, programs, 1, 132) == expected


@pytest.mark.parametrize(("channels", "expected"), [(16, 32), (64, 64), (96, 64), (106, 64), (192, 64)])
def test_block_with_the_least_work(channels, expected):
    assert config.forward_blocks(channels, 1, 6, torch.bfloat16).channels == expected


@pytest.mark.parametrize("states", [1, 16])
def test_no_lane_is_idle_by_rule_where_warps_are_wider(monkeypatch, states):
    """AMD's warps have 64 lanes."""
    monkeypatch.setattr(config, "LANES", 64)
    for dtype in TOLERANCE:
        for blocks in (config.forward_blocks, config.backward_blocks):
            assert blocks(96, states, 12, dtype).channels >= 64


@pytest.mark.parametrize(("programs", "walk", "expected"), [(1024, 1, True), (1536, 1, False), (1024, 2, False)])
def test_rows_are_fetched_ahead_where_warps_are_few(programs, walk, expected):
    blocks = config.Blocks(64, 16, 1)
    assert config.prefetch(1, blocks, programs, walk, 132) is expected
    assert not config.prefetch(16, blocks, programs, walk, 132)


def test_doubles_are_refused():
    args, options = make_inputs(14, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="cannot run.*not float64.*portable"):
        selective_scan(**args, **options, backend="triton")


def test_old_triton_is_refused(monkeypatch):
    monkeypatch.setattr(triton_support, "_TRITON", (3, 4))
    args, options = make_inputs(15, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="need triton 3.5 .* or newer, found 3.4"):
        selective_scan(**args, **options, backend="triton")


def test_without_gpu_or_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    args, options = make_inputs(15, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="cannot run on cpu.*need a GPU.*portable"):
        selective_scan(**args, **options, backend="triton")
