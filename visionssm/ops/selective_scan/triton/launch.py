"""The host's side: strides, buffers, grids; same functions as the portable implementation."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import Scan
from . import config
from .lanes_backward import lanes_bwd_kernel
from .lanes_forward import lanes_fwd_kernel
from .merge import gather_sum_kernel, merge_routes_kernel, sum_shares_kernel
from .prepared import Prepared
from .scan_backward import selective_scan_bwd_kernel
from .scan_forward import selective_scan_fwd_kernel
from .split import join_segments_kernel
from .tables import TableUse, Visits, table_use, table_visits


def forward(scan: Scan, save: bool = False) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `Backend` says; what is saved are the states before every chunk of steps."""
    with torch.cuda.device_of(scan.u):
        return _forward(scan, save)


def states_shape(scan: Scan) -> tuple[int, ...]:
    """Shape of the states that `forward` saves: (b, K, chunks, N, d), with many states (b, K, chunks, d, N)."""
    chunks = -(-scan.steps // config.chunk(scan.states))
    widths = (scan.states, scan.channels) if config.in_lanes(scan.states) else (scan.channels, scan.states)
    return scan.batch, scan.routes, chunks, *widths


def backward(grad: Tensor, grad_last: Tensor | None, states: Tensor, scan: Scan) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    with torch.cuda.device_of(scan.u):
        return _backward(grad, grad_last, states, scan)


_PLANS = 4096  # kept at most: images have many sizes


class _ForwardPlan(NamedTuple):
    first: Prepared | None  # pass over a sequence that is split into segments
    scan: Prepared
    segments: int
    shape: tuple[int, ...]  # of what the scan writes
    dtype: torch.dtype
    written: bool  # every element of it
    gather: bool  # and is summed over the visits of each token
    merge: bool  # and is summed over the routes
    late_skip: bool  # D u is added by that sum


def _forward(scan: Scan, save: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    use = None if scan.order is None else table_use(scan.order, scan.num_tokens)
    scan, u = _with_dense_rows(scan), scan.u
    plan = _remembered(_plan_forward, scan, use, save)
    tensors = _tensors(scan, use)
    y = _buffer(plan.shape, plan.written, u, plan.dtype)
    states = u.new_empty(states_shape(scan), dtype=torch.float32) if save else None
    if plan.late_skip:
        tensors["D"] = None
    initial = entries = None if scan.initial_state is None else scan.initial_state.contiguous()
    last = u.new_empty(scan.state_shape, dtype=torch.float32) if scan.last_state else None
    if plan.first is not None:
        entries, sums = _ends(scan, plan.segments)
        plan.first(out=None, states=None, ends=entries, sums=sums, entries=None, last_state=None, **tensors)
        _join(entries, sums, initial, scan, plan.segments, reverse=False)
    plan.scan(out=y, states=states, ends=None, sums=None, entries=entries, last_state=last, **tensors)

    if plan.gather:
        visits = table_visits(scan.order, scan.num_tokens, scan.out == "sum")
        out = _gather(y, visits, scan.out_dtype).view(scan.out_shape)
    elif plan.merge:
        skip = (scan.u, scan.D) if plan.late_skip else (None, None)
        out = _merge(y, scan.out_dtype, *skip).squeeze(2)
    else:
        out = y.squeeze(2) if scan.out == "sum" else y
    return out, last, states


def _plan_forward(scan: Scan, use: TableUse | None, save: bool) -> _ForwardPlan:
    b, K, L, T, d = scan.batch, scan.routes, scan.num_tokens, scan.steps, scan.channels
    u, full = scan.u, use is None or use.full
    gather = scan.out != "step" and use is not None and use.repeats
    arguments = _arguments(scan, use)
    lanes = config.in_lanes(scan.states)
    kernel = lanes_fwd_kernel if lanes else selective_scan_fwd_kernel
    blocks = config.forward_blocks(d, scan.states, arguments["RANK"], scan.delta.dtype)
    grid = _grid(scan, blocks, walk=scan.out == "sum" and not gather)
    groups = K // grid.walk
    # float16 could overflow before the sum
    sums = gather or (scan.out == "sum" and K > 1)
    dtype = _wide(scan.out_dtype) if sums else scan.out_dtype
    merge = sums and not gather and (groups > 1 or dtype != scan.out_dtype)
    by_step = gather or scan.out == "step"
    late_skip = (
        merge
        and grid.walk == 1
        and scan.D is not None
        and full
        and not scan.u_by_step
        and u.stride(0) == L * u.stride(1)
    )
    shape = b, T if by_step else L, groups, d
    arguments |= dict(
        segments=grid.segments,
        segment_steps=grid.segment_steps,
        BLOCK=blocks.channels,
        TURN=blocks.turn,
        WALK=grid.walk,
        CHUNK=config.chunk(scan.states),
        chunks=states_shape(scan)[2],
        num_warps=blocks.warps,
        out_b=shape[1] * groups * d,
        out_s=groups * d,
        out_k=d,
        OUT_BY_STEP=by_step,
    )
    if lanes:
        arguments |= dict(
            OUT_LIKE_U=groups * d == u.stride(1) and not by_step and not scan.u_by_step,
            PREFETCH=config.prefetch(scan.states, blocks, grid.programs, grid.walk, config.multiprocessors(u.device)),
        )
    first, second = (Prepared(kernel, (grid.programs,), **arguments) for _ in range(2))
    return _ForwardPlan(
        first if grid.segments > 1 else None,
        second,
        grid.segments,
        shape,
        dtype,
        by_step or full,
        gather,
        merge,
        late_skip,
    )


class _BackwardPlan(NamedTuple):
    first: Prepared | None  # pass over a sequence that is split into segments
    scan: Prepared
    segments: int
    scratch: tuple[int, ...] | None  # shapes of what the scan writes: states within a chunk
    du: tuple[int, ...]
    dz: tuple[int, ...]
    shares: tuple[int, ...]  # of the gradients of B and C
    du_written: bool  # every element of it
    dx_written: bool  # of the others


def _backward(grad: Tensor, grad_last: Tensor | None, states: Tensor, scan: Scan) -> tuple[Tensor | None, ...]:
    b, K, L, d, n = scan.batch, scan.routes, scan.num_tokens, scan.channels, scan.states
    use = None if scan.order is None else table_use(scan.order, L)
    repeats = use is not None and use.repeats
    scan, u = _with_dense_rows(scan), scan.u
    grad = _dense(grad.unsqueeze(2) if scan.out == "sum" else grad)
    plan = _remembered(_plan_backward, scan, use, grad, grad_last, states)
    tensors = _tensors(scan, use) | dict(grad=grad)
    nothing = dict.fromkeys(("states", "scratch", "du", "dz", "shares", "dA", "dD", "dbias", "dinitial"))
    grad_last = entries = None if grad_last is None else grad_last.contiguous()
    if plan.first is not None:
        entries, sums = _ends(scan, plan.segments)
        plan.first(ends=entries, sums=sums, entries=None, **nothing, **tensors)
        _join(entries, sums, grad_last, scan, plan.segments, reverse=True)

    def partial(*shape: int) -> Tensor:
        return u.new_empty(shape, dtype=torch.float32)

    du = _buffer(plan.du, plan.du_written, u, _wide(scan.u.dtype))
    dz = _buffer(plan.dz, plan.dx_written, u, _wide(scan.delta.dtype))
    shares = _buffer(plan.shares, plan.dx_written, u, torch.float32)
    dA = partial(b, K, plan.segments, d, n)
    dD = None if scan.D is None else partial(b, K, plan.segments, d)
    dbias = None if scan.delta_bias is None else partial(b, K, plan.segments, d)
    dinitial = None if scan.initial_state is None else partial(*scan.state_shape)
    plan.scan(
        states=states,
        scratch=None if plan.scratch is None else partial(*plan.scratch),
        ends=None,
        sums=None,
        entries=entries,
        du=du,
        dz=dz,
        shares=shares,
        dA=dA,
        dD=dD,
        dbias=dbias,
        dinitial=dinitial,
        **tensors,
    )

    def by_storage(x: Tensor, like: Tensor, stored_by_step: bool) -> Tensor:
        """x (b, S, K, ...) as `like` is stored, (b, S, 1 or K, ...)."""
        shared = like.shape[2] == 1
        if repeats and not stored_by_step:
            return _gather(x, table_visits(scan.order, L, shared), like.dtype).view(b, L, -1, *x.shape[3:])
        return _merge(x, like.dtype) if shared and x.shape[2] > 1 else x.to(like.dtype)

    if scan.C is None or min(scan.B.shape[2], scan.C.shape[2]) < K or (repeats and not scan.by_step):
        widths = n, 0 if scan.C is None else n
        dB, dC = (shares.sum(3) if shares.shape[3] > 1 else shares.squeeze(3)).split(widths, -1)
        dB = by_storage(dB.contiguous(), scan.B, scan.by_step)
        dC = None if scan.C is None else by_storage(dC.contiguous(), scan.C, scan.by_step)
    else:
        dB, dC = _sum_shares(shares, scan.B, scan.C)
    dweight = None
    if scan.dt_weight is not None:
        ddelta, dweight = _low_rank(by_storage(dz, dz, scan.by_step), scan)
    else:
        ddelta = by_storage(dz, scan.delta, scan.by_step)
    return (
        by_storage(du, scan.u, scan.u_by_step),
        ddelta,
        _sum_images(dA, scan.A),
        dB,
        dC,
        _sum_images(dD, scan.D),
        _sum_images(dbias, scan.delta_bias),
        dweight,
        dinitial,
    )


def _plan_backward(scan: Scan, use: TableUse | None, grad: Tensor) -> _BackwardPlan:
    b, K, L, T, d, n = scan.batch, scan.routes, scan.num_tokens, scan.steps, scan.channels, scan.states
    full, repeats = use is None or use.full, use is not None and use.repeats
    arguments = _arguments(scan, use)
    lanes = config.in_lanes(n)
    kernel = lanes_bwd_kernel if lanes else selective_scan_bwd_kernel
    blocks = config.backward_blocks(d, n, arguments["RANK"], scan.delta.dtype)
    # with several states the registers are full without sums of earlier routes
    grid = _grid(scan, blocks, walk=n == 1 and scan.u.shape[2] == 1 and not repeats, span=not lanes)
    chunk, count = config.chunk(n), -(-d // blocks.channels) // grid.span
    du_by_step, dx_by_step = scan.u_by_step or repeats, scan.by_step or repeats
    du_rows, rows = T if du_by_step else L, T if dx_by_step else L
    arguments |= dict(
        grad_b=grad.stride(0),
        grad_s=grad.stride(1),
        grad_k=_route_stride(grad, 2),
        segments=grid.segments,
        segment_steps=grid.segment_steps,
        chunks=states_shape(scan)[2],
        du_rows=du_rows,
        rows=rows,
        BLOCK=blocks.channels,
        TURN=blocks.turn,
        CHUNK=chunk,
        num_warps=blocks.warps,
        GRAD_BY_STEP=scan.out == "step",
        DU_BY_STEP=du_by_step,
        DX_BY_STEP=dx_by_step,
        WIDE=arguments["WIDE"] or max(max(L, T) * grad.stride(1), K * _route_stride(grad, 2)) >= 2**31,
    )
    short = config.registers_are_short(n, scan.B.dtype, scan.u.device)
    arguments |= dict(WALK=grid.walk, SHORT=short) if lanes else dict(SPAN=grid.span)
    first, second = (Prepared(kernel, (grid.programs,), **arguments) for _ in range(2))
    scratch = grid.programs, chunk // blocks.turn, blocks.channels, _power_of_two(n)
    return _BackwardPlan(
        first if grid.segments > 1 else None,
        second,
        grid.segments,
        scratch if chunk > blocks.turn else None,
        (b, du_rows, K // grid.walk, d),
        (b, rows, K, d),
        (b, rows, K, count, n if scan.C is None else 2 * n),
        full or du_by_step,
        full or dx_by_step,
    )


# --- plans, arguments, grids ----------------------------------------------------------------------------------------

_plans: dict[tuple, _ForwardPlan | _BackwardPlan] = {}


def _remembered(plan, scan: Scan, use: TableUse | None, rest, *others: Tensor | None):
    """plan(scan, use, rest), made once for equal ones; it may read of tensors what `_kind` tells.

    `others` are tensors that the planned kernels will be given too, but for those that are new at every call.
    """
    kinds = tuple(_kind(x) if isinstance(x, Tensor) else x for x in (*scan.tensors, rest, *others))
    order = None if scan.order is None else (scan.order.shape, use[1:])
    key = (
        plan,
        kinds,
        order,
        scan[len(scan.tensors) + 1 :],
        _joined(scan.delta, scan.B, scan.C),
        scan.u.device,
        _rules(),
    )
    found = _plans.get(key)
    if found is None:
        if len(_plans) >= _PLANS:
            _plans.clear()
        found = _plans[key] = plan(scan, use, rest)
    return found


def _kind(x: Tensor) -> tuple:
    """What Triton compiles a kernel by, and strides."""
    return x.shape, x.stride(), x.dtype, x.data_ptr() % 16


def _rules() -> tuple:
    """What plans are made by, and tests and benchmarks replace."""
    return *config.rules(), _wide_offsets, _logarithm, _word, id(lanes_fwd_kernel)


def _with_dense_rows(scan: Scan) -> Scan:
    """The scan with neighbouring channels in u, delta, B and C; copies only where they are not."""
    dense = {name: _dense(t) for name in ("u", "delta", "B", "C") if (t := getattr(scan, name)) is not None}
    return scan if all(dense[name] is getattr(scan, name) for name in dense) else scan._replace(**dense)


def _tensors(scan: Scan, use: TableUse | None) -> dict[str, Tensor | None]:
    """The tensors that the forward and the backward kernel share, by the kernels' names."""
    A, D, bias, weight = (
        None if t is None else t.contiguous() for t in (scan.A, scan.D, scan.delta_bias, scan.dt_weight)
    )
    order = None if use is None else use.entries
    return dict(u=scan.u, delta=scan.delta, B=scan.B, C=scan.C, A=A, D=D, bias=bias, weight=weight, order=order)


def _arguments(scan: Scan, use: TableUse | None) -> dict:
    """What the forward and the backward kernel share but tensors."""
    rank = 0 if scan.dt_weight is None else scan.dt_weight.shape[2]
    parameters = dict(weight=scan.dt_weight, bias=scan.delta_bias, A=scan.A, D=scan.D)
    arguments = {
        f"{name}_k": 0 if t is None or t.shape[0] == 1 else math.prod(t.shape[1:]) for name, t in parameters.items()
    }
    arguments |= dict(
        routes=scan.routes,
        steps=scan.steps,
        CHANNELS=scan.channels,
        N=scan.states,
        RANK=rank,
        RANKS=max(16, _power_of_two(rank)),
        U_BY_STEP=scan.u_by_step,
        BY_STEP=scan.by_step,
        PADDED=use is not None and use.padded,
        WIDE=_wide_offsets(scan),
        LOG=_logarithm(scan),
        PRECISION=_precision(scan),
        num_stages=1,
    )
    for name in ("u", "delta", "B", "C"):
        x = getattr(scan, name)
        strides = (0, 0, 0) if x is None else (x.stride(0), x.stride(1), _route_stride(x, 2))
        arguments |= dict(zip((f"{name}_b", f"{name}_s", f"{name}_k"), strides, strict=True))
    if config.in_lanes(scan.states):
        joined = _joined(scan.delta, scan.B, scan.C)
        arguments |= dict(JOINED=joined, WORD=_word(scan.B, scan.C, joined), ALIGNED=_alignment(scan.delta))
    else:
        arguments |= dict(STATES=_power_of_two(scan.states))
    return arguments


def _joined(delta: Tensor, B: Tensor, C: Tensor | None) -> bool:
    """Whether the rows of delta, B and C lie one after the other, as one projection writes them."""
    at, n = delta.data_ptr() + delta.shape[3] * delta.element_size(), B.shape[3] * B.element_size()
    for i, x in enumerate((B,) if C is None else (B, C)):
        if x.dtype != delta.dtype or x.shape[2] != delta.shape[2] or x.data_ptr() != at + i * n:
            return False
        if any(size > 1 and a != b for size, a, b in zip(x.shape[:3], x.stride(), delta.stride(), strict=False)):
            return False
    return True


def _word(B: Tensor, C: Tensor | None, joined: bool) -> int:
    """Elements of B and C that one aligned load of at most 64 bits may read; 1 where their dtypes differ."""
    if C is not None and C.dtype != B.dtype:
        return 1
    count = B.shape[3] * (2 if joined and C is not None else 1)
    size = B.element_size()
    tensors = (B,) if C is None or joined else (B, C)
    for word in (8 // size, 4 // size):
        if word > 1 and count % word == 0:
            steps = (t.stride(i) for t in tensors for i in range(3) if t.shape[i] > 1)
            if all(step % word == 0 for step in steps) and all(t.data_ptr() % (word * size) == 0 for t in tensors):
                return word
    return 1


def _alignment(x: Tensor) -> int:
    """Elements, at most 16 bytes of them, of which all distances between rows are multiples."""
    strides = [x.stride(i) for i in range(3) if x.shape[i] > 1]
    return math.gcd(16 // x.element_size(), *strides)


def _wide_offsets(scan: Scan) -> bool:
    """Whether offsets within one image, of any tensor read or written, may need 64 bits."""
    rows = max(scan.num_tokens, scan.steps)
    widest = max(
        scan.routes * max(scan.channels, (2 * scan.states + 16) * -(-scan.channels // 16)),
        *(t.stride(1) for t in (scan.u, scan.delta, scan.B, scan.C) if t is not None),
    )
    farthest = max(
        (scan.routes - 1) * _route_stride(t, 2) for t in (scan.u, scan.delta, scan.B, scan.C) if t is not None
    )
    return max(rows * widest, farthest) >= 2**31


def _logarithm(scan: Scan) -> str:
    """How softplus takes its logarithm: accurately, unless the inputs are rough and the instruction matters."""
    if not scan.softplus:
        return "none"
    if torch.float32 in (scan.u.dtype, scan.delta.dtype):
        return "polynomial"
    return "ptx" if scan.u.is_cuda and torch.version.hip is None else "log2"


def _precision(scan: Scan) -> str:
    """How float32 products of the low-rank delta are taken: as three in TF32 where the exact one would cost more."""
    dear = scan.states == 1 and scan.dt_weight is not None and scan.dt_weight.shape[2] > 16
    return "tf32x3" if dear and torch.version.hip is None else "ieee"


class Grid(NamedTuple):
    programs: int
    walk: int  # routes of one program
    span: int  # blocks of channels of one program
    segments: int  # parts that a sequence is split into
    segment_steps: int


def _grid(scan: Scan, blocks: config.Blocks, walk: bool, span: bool = False) -> Grid:
    """How the scan is divided among programs; one may have several routes with `walk`, several blocks with `span`."""
    count = -(-scan.channels // blocks.channels)
    programs = scan.batch * scan.routes * count
    multiprocessors = config.multiprocessors(scan.u.device)
    segments = config.segments(programs, blocks.warps, scan.steps, multiprocessors)
    unit = max(blocks.turn, config.chunk(scan.states))
    segment_steps = -(-scan.steps // (segments * unit)) * unit
    segments = -(-scan.steps // segment_steps)
    routes = spanned = 1
    if walk and segments == 1:  # segments would meet other routes' at tokens of both
        routes = config.routes_per_program(scan.routes, scan.channels, programs, blocks.warps, multiprocessors)
    if span:
        rank = 0 if scan.dt_weight is None else scan.dt_weight.shape[2]
        spanned = config.blocks_per_program(
            count, scan.states, rank, programs * segments, blocks.warps, multiprocessors
        )
    return Grid(programs * segments // (routes * spanned), routes, spanned, segments, segment_steps)


def _dense(x: Tensor) -> Tensor:
    """x with neighbouring channels; a copy only where they are not."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _route_stride(x: Tensor | None, axis: int = 0) -> int:
    return 0 if x is None or x.shape[axis] == 1 else x.stride(axis)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length() if size > 0 else 1


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Dtype of results per route before they are summed; float16 could overflow."""
    return torch.bfloat16 if dtype == torch.bfloat16 else torch.float32


def _buffer(shape: tuple[int, ...], all_written: bool, like: Tensor, dtype: torch.dtype) -> Tensor:
    return like.new_empty(shape, dtype=dtype) if all_written else like.new_zeros(shape, dtype=dtype)


# --- the small kernels ----------------------------------------------------------------------------------------------


def _ends(scan: Scan, segments: int) -> tuple[Tensor, Tensor]:
    shape = scan.batch * scan.routes, segments, scan.channels
    return tuple(scan.u.new_empty(s, dtype=torch.float32) for s in ((*shape, scan.states), shape))


def _join(ends: Tensor, sums: Tensor, start: Tensor | None, scan: Scan, segments: int, reverse: bool) -> None:
    A, block = scan.A.contiguous(), 128
    grid = ends.shape[0], -(-scan.channels * scan.states // block)
    join_segments_kernel[grid](
        ends,
        sums,
        start,
        A,
        _route_stride(A),
        scan.routes,
        segments,
        scan.channels,
        scan.states,
        block,
        reverse,
        num_warps=1,
    )


def _merge(x: Tensor, dtype: torch.dtype, u: Tensor | None = None, D: Tensor | None = None) -> Tensor:
    """x (b, L, K, c), contiguous, summed over its routes, plus D u: (b, L, 1, c)."""
    out = x.new_empty((*x.shape[:2], 1, x.shape[3]), dtype=dtype)
    D = None if D is None else D.contiguous()
    kinds = (None if t is None else _kind(t) for t in (u, D))
    _merging(id(merge_routes_kernel), _kind(x), *kinds, dtype, x.device)(x=x, out=out, u=u, D=D)
    return out


@lru_cache(_PLANS)
def _merging(_, of_x: tuple, of_u: tuple | None, of_D: tuple | None, dtype: torch.dtype, device) -> Prepared:
    b, L, K, c = of_x[0]
    rows, block = b * L, min(256, max(16, _power_of_two(c)))
    per_program = 1024 // block
    shared, u_s, u_k, D_k = True, 0, 0, 0
    if of_u is not None and of_D is not None:
        shape, stride, *_ = of_u
        shared, u_s, D_k = shape[2] == 1, stride[1], 0 if of_D[0][0] == 1 else c
        u_k = 0 if shared else stride[2]
    return Prepared(
        merge_routes_kernel,
        (-(-rows // per_program), -(-c // block)),
        u_s=u_s,
        u_k=u_k,
        D_k=D_k,
        rows=rows,
        ROUTES=K,
        CHANNELS=c,
        ROWS=per_program,
        BLOCK=block,
        SHARED=shared,
        num_warps=4,
    )


def _gather(x: Tensor, visits: Visits, dtype: torch.dtype) -> Tensor:
    """x (b, T, K, c) summed over the steps that visit each bin: (b, bins, c)."""
    b, T, K, c = x.shape
    bins = visits.start.shape[0] - 1
    out = x.new_empty((b, bins, c), dtype=dtype)
    block = min(256, max(16, _power_of_two(c)))
    gather_sum_kernel[(bins, b, -(-c // block))](x, out, visits.start, visits.index, T * K, bins, c, block, num_warps=1)
    return out


def _sum_shares(shares: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of B and C from shares (b, S, K, count, 2 N), which are summed over the blocks of channels."""
    b, S, K, count, width = shares.shape
    dB, dC = (shares.new_empty((b, S, K, width // 2), dtype=t.dtype) for t in (B, C))
    summing = _summing(id(sum_shares_kernel), b * S * K, count, width, B.dtype, C.dtype, shares.device)
    summing(shares=shares, dB=dB, dC=dC)
    return dB, dC


@lru_cache(_PLANS)
def _summing(_, rows: int, count: int, width: int, of_B, of_C, device) -> Prepared:
    columns = _power_of_two(width)
    per_program = max(1, 1024 // columns)
    return Prepared(
        sum_shares_kernel,
        (-(-rows // per_program),),
        rows=rows,
        COUNT=count,
        N=width // 2,
        ROWS=per_program,
        COLUMNS=columns,
        num_warps=4,
    )


# --- gradients of parameters ----------------------------------------------------------------------------------------


def _sum_images(partial: Tensor | None, like: Tensor | None) -> Tensor | None:
    """partial (b, K, segments, ...) as `like`, (1 or K, ...)."""
    if partial is None:
        return None
    return partial.sum((0, 2) if like.shape[0] == partial.shape[1] else (0, 1, 2)).view_as(like)


def _low_rank(dz: Tensor, scan: Scan) -> tuple[Tensor, Tensor]:
    """Gradients of a low-rank delta and of its weight, from that of the raw step size, (b, S, K, d)."""
    b, S, K, d = dz.shape
    delta, weight = scan.delta, scan.dt_weight
    R = delta.shape[3]
    dz = dz.view(b * S, K, d).transpose(0, 1)
    ddelta = torch.bmm(dz, weight.to(dz.dtype).expand(K, d, R)).transpose(0, 1).reshape(b, S, K, R)
    rows = delta.to(dz.dtype).reshape(b * S, -1, R).transpose(0, 1).expand(K, b * S, R)
    dweight = torch.bmm(dz.transpose(1, 2), rows)
    if delta.shape[2] < K:
        ddelta = ddelta.sum(2, keepdim=True)
    if weight.shape[0] < K:
        dweight = dweight.sum(0, keepdim=True)
    return ddelta.to(delta.dtype).contiguous(), dweight.to(weight.dtype)
