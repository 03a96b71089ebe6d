"""The forward scan with few states: a lane owns a channel and holds all of its states."""

import triton
import triton.language as tl

from .access import (
    AHEAD,
    element,
    load_parameters,
    load_projections,
    load_row,
    load_rows,
    load_states,
    load_step_sizes,
    logits,
    row_offset,
)
from .mathematics import LN2, softplus2


@triton.jit(do_not_specialize=["steps", "segments", "segment_steps", "chunks"])
def lanes_fwd_kernel(
    u,
    delta,
    weight,
    bias,
    A,
    B,
    C,
    D,
    order,
    out,
    states,
    ends,
    sums,
    entries,
    last_state,
    u_b,
    u_s,
    u_k,
    delta_b,
    delta_s,
    delta_k,
    weight_k,
    bias_k,
    A_k,
    B_b,
    B_s,
    B_k,
    C_b,
    C_s,
    C_k,
    D_k,
    out_b,
    out_s,
    out_k,
    routes,
    steps,
    segments,
    segment_steps,
    chunks,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    WALK: tl.constexpr,
    CHUNK: tl.constexpr,
    JOINED: tl.constexpr,
    WORD: tl.constexpr,
    ALIGNED: tl.constexpr,
    OUT_LIKE_U: tl.constexpr,
    PREFETCH: tl.constexpr,
    U_BY_STEP: tl.constexpr,
    BY_STEP: tl.constexpr,
    OUT_BY_STEP: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
    LOG: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `selective_scan_fwd_kernel`, with states kept as (b, K, chunks, N, CHANNELS).

    JOINED: the rows of delta, B and C follow one another in memory, so that one address serves them. WORD: elements of
    B and C in one load. OUT_LIKE_U: rows of u and out lie equally far apart. PREFETCH: the next turn's rows are fetched
    before this turn is scanned.
    """
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    WAITING: tl.constexpr = 1 if N > 1 else 8 if TURN > 8 else TURN  # rows of sums waiting in registers
    EXACT: tl.constexpr = ends is not None or last_state is not None  # the state after the last step is asked for
    BEHIND: tl.constexpr = CHANNELS if RANK == 0 else RANK  # from delta to B
    BOTH: tl.constexpr = 2 * N if JOINED and C is not None else N
    DTYPE: tl.constexpr = B.dtype.element_ty
    form: tl.constexpr = (RANK, RANKS, ALIGNED, BY_STEP, PADDED, WIDE)
    pid = tl.program_id(0)
    groups = routes // WALK
    group = pid % groups
    block = pid // groups % blocks
    segment = pid // (groups * blocks) % segments
    image = (pid // (groups * blocks) // segments).to(tl.int64)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    mask = None if CHANNELS % BLOCK == 0 else inside

    u += image * u_b
    delta += tl.multiple_of(image * delta_b, ALIGNED)
    if not JOINED:
        B += image * B_b
        if C is not None:
            C += image * C_b
    if out is not None:
        out += image * out_b + group * out_k + channel

    for walked in range(0, WALK):
        route = group * WALK + walked
        far = route.to(tl.int64) if WIDE else route
        scan = image * routes + route  # number of this sequence

        u_lanes = u + far * u_k + channel
        delta_rows = delta + tl.multiple_of(far * delta_k, ALIGNED)
        if JOINED:
            projections = (delta_rows + BEHIND, delta_s, None, 0)
        elif C is None:
            projections = (B + far * B_k, B_s, None, 0)
        else:
            projections = (B + far * B_k, B_s, C + far * C_k, C_s)
        token_of = None
        if order is not None:
            token_of = order + route * (steps + AHEAD)

        per_scan = scan * segments + segment
        zero = tl.zeros((BLOCK,), tl.float32)
        a = load_states(A + route * A_k + channel * N, 1, inside, N, zero)
        h = load_states(None if entries is None else entries + (per_scan * CHANNELS + channel) * N, 1, inside, N, zero)
        skip, bias2, w = load_parameters(
            weight, bias, D, delta, route, weight_k, bias_k, D_k, channel, inside, RANK, RANKS
        )
        total = zero

        first = segment * segment_steps
        end = tl.minimum(first + segment_steps, steps)
        if PREFETCH:
            tokens_n, raw_n = load_step_sizes(delta_rows, delta_s, token_of, channel, mask, first, steps, TURN, form)
            x_n = load_rows(u_lanes, u_s, tokens_n, first, steps, mask, U_BY_STEP, PADDED, WIDE)
            b_n, c_n = load_projections(projections, tokens_n, first, steps, BOTH, WORD, form)
        for turn in range(0, tl.cdiv(end - first, TURN)):
            t0 = first + turn * TURN
            at = t0 + TURN if PREFETCH else t0
            if PREFETCH:
                tokens, raw, x, b, c = tokens_n, raw_n, x_n, b_n, c_n
            tokens_n, raw_n = load_step_sizes(delta_rows, delta_s, token_of, channel, mask, at, steps, TURN, form)
            x_n = load_rows(u_lanes, u_s, tokens_n, at, steps, mask, U_BY_STEP, PADDED, WIDE)
            b_n, c_n = load_projections(projections, tokens_n, at, steps, BOTH, WORD, form)
            if not PREFETCH:
                tokens, raw, x, b, c = tokens_n, raw_n, x_n, b_n, c_n
            z = logits(raw, w, bias2, TURN, RANK, PRECISION)
            for i in tl.static_range(TURN):
                t = t0 + i
                live = t < steps
                if WALK > 1:
                    if i % WAITING == 0:
                        earlier = ()  # sums of the routes walked before
                        for j in tl.static_range(WAITING):
                            earlier = earlier + (
                                load_row(
                                    out, out_s, tokens[i + j], t + j, steps, inside & (walked > 0), False, PADDED, WIDE
                                ),
                            )
                if states is not None:
                    if i % CHUNK == 0:
                        if CHUNK <= TURN or t % CHUNK == 0:
                            saved = states + (scan * chunks + t // CHUNK) * CHANNELS * N + channel
                            for n in tl.static_range(N):
                                tl.store(saved + n * CHANNELS, h[n], mask=inside & live)
                l = softplus2(z[i], LOG)
                if EXACT:
                    l = tl.where(live, l, 0.0)
                x_i = x[i].to(tl.float32)
                dx = l * x_i * LN2
                y = skip * x_i if D is not None else tl.zeros((BLOCK,), tl.float32)
                next_h = ()
                for n in tl.static_range(N):
                    h_n = tl.exp2(l * a[n]) * h[n] + dx * element(b[i], n, WORD, DTYPE)
                    next_h = next_h + (h_n,)
                    if C is None:
                        y += h_n
                    elif JOINED:
                        y += h_n * element(b[i], N + n, WORD, DTYPE)
                    else:
                        y += h_n * element(c[i], n, WORD, DTYPE)
                h = next_h
                if ends is not None:
                    total += l
                else:
                    if WALK > 1:
                        y += earlier[i % WAITING].to(tl.float32)
                    if PADDED:
                        seen = tokens[i] >= 0
                        if OUT_BY_STEP:
                            y = tl.where(seen, y, 0.0)
                        else:
                            live = live & seen
                    out_stride = u_s if OUT_LIKE_U else out_s
                    tl.store(out + row_offset(tokens[i], t, out_stride, OUT_BY_STEP, WIDE), y, mask=inside & live)
        for n in tl.static_range(N):
            if ends is not None:
                tl.store(ends + (per_scan * CHANNELS + channel) * N + n, h[n], mask=inside)
            if last_state is not None:
                tl.store(
                    last_state + (scan * CHANNELS + channel) * N + n, h[n], mask=inside & (segment == segments - 1)
                )
        if ends is not None:
            tl.store(sums + per_scan * CHANNELS + channel, total, mask=inside)
        if WALK > 1:
            tl.debug_barrier()  # the next route reads what this one wrote
