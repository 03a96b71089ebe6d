"""The backward scan with few states: a lane owns a channel and holds all of its states."""

import triton
import triton.language as tl

from .access import (
    AHEAD,
    element,
    load_parameters,
    load_projections,
    load_rows,
    load_states,
    load_step_sizes,
    logits,
    row_offset,
)
from .mathematics import LN2, fold, lane_sums, softplus2


@triton.jit
def advance_lanes(h, l, x, b, a, WORD: tl.constexpr, DTYPE: tl.constexpr):
    """The states of a channel, a tuple, after one step."""
    dx = l * x * LN2
    after = ()
    for n in tl.static_range(len(h)):
        after = after + (tl.exp2(l * a[n]) * h[n] + dx * element(b, n, WORD, DTYPE),)
    return after


@triton.jit
def save_states_of_turns(
    saved, scratch, inputs, order, parameters, channel, mask, c0, t0, steps, sizes: tl.constexpr, form: tl.constexpr
):
    """Scan on from the states saved for the chunk that begins at step c0: those before each turn up to t0's to scratch.

    `inputs` are (u, distance of its rows, delta, distance, rows of B as `load_projections` has them), `parameters` (A,
    bias, weight).
    """
    u, u_s, delta, delta_s, only_B = inputs
    a, bias2, w = parameters
    CHANNELS: tl.constexpr = sizes[0]
    N: tl.constexpr = sizes[1]
    TURN: tl.constexpr = sizes[2]
    WORD: tl.constexpr = sizes[3]
    U_BY_STEP: tl.constexpr = sizes[4]
    LOG: tl.constexpr = sizes[5]
    PRECISION: tl.constexpr = sizes[6]
    DTYPE: tl.constexpr = only_B[0].dtype.element_ty
    count = (t0 - c0) // TURN
    BLOCK: tl.constexpr = channel.shape[0]
    h = load_states(saved, CHANNELS, channel < CHANNELS, N, tl.zeros((BLOCK,), tl.float32))
    for turn in range(0, count):
        t = c0 + turn * TURN
        tokens, raw = load_step_sizes(delta, delta_s, order, channel, mask, t, steps, TURN, form)
        x = load_rows(u, u_s, tokens, t, steps, mask, U_BY_STEP, form[4], form[5])
        b, _ = load_projections(only_B, tokens, t, steps, N, WORD, form)
        for n in tl.static_range(N):
            tl.store(scratch + (turn * N + n) * BLOCK, h[n])
        z = logits(raw, w, bias2, TURN, form[0], PRECISION)
        for i in tl.static_range(TURN):
            h = advance_lanes(h, softplus2(z[i], LOG), x[i].to(tl.float32), b[i], a, WORD, DTYPE)
    for n in tl.static_range(N):
        tl.store(scratch + (count * N + n) * BLOCK, h[n])
    tl.debug_barrier()


@triton.jit(do_not_specialize=["steps", "segments", "segment_steps", "chunks", "du_rows", "rows"])
def lanes_bwd_kernel(
    grad,
    u,
    delta,
    weight,
    bias,
    A,
    B,
    C,
    D,
    order,
    states,
    scratch,
    ends,
    sums,
    entries,
    du,
    dz,
    shares,
    dA,
    dD,
    dbias,
    dinitial,
    grad_b,
    grad_s,
    grad_k,
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
    routes,
    steps,
    segments,
    segment_steps,
    chunks,
    du_rows,
    rows,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    WALK: tl.constexpr,
    CHUNK: tl.constexpr,
    SHORT: tl.constexpr,
    JOINED: tl.constexpr,
    WORD: tl.constexpr,
    ALIGNED: tl.constexpr,
    GRAD_BY_STEP: tl.constexpr,
    U_BY_STEP: tl.constexpr,
    BY_STEP: tl.constexpr,
    DU_BY_STEP: tl.constexpr,
    DX_BY_STEP: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
    LOG: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """As `selective_scan_bwd_kernel` of one block of channels a program, with states as (b, K, chunks, N, CHANNELS).

    A program walks WALK routes one after the other, as in the forward scan, and sums their gradients of u: du has a row
    for each such group of routes.
    SHORT: registers are; rows of B and C are read again at each step, and a chunk's states are made before any is read.
    JOINED, WORD: as in `lanes_fwd_kernel`.
    """
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    BEHIND: tl.constexpr = CHANNELS if RANK == 0 else RANK  # from delta to B
    SHARES: tl.constexpr = N if C is None else 2 * N
    BOTH: tl.constexpr = SHARES if JOINED else N
    # sums of one step, or with one state of one turn, that the lanes can take together
    TOGETHER: tl.constexpr = C is not None and (N == 1 or N == 2 or N == 4 or N == 8 or N == 16)
    DTYPE: tl.constexpr = B.dtype.element_ty
    LEAN: tl.constexpr = SHORT and ends is None and CHUNK > TURN
    form: tl.constexpr = (RANK, RANKS, ALIGNED, BY_STEP, PADDED, WIDE)
    sizes: tl.constexpr = (CHANNELS, N, TURN, WORD, U_BY_STEP, LOG, PRECISION)
    pid = tl.program_id(0)
    groups = routes // WALK
    group = pid % groups
    block = pid // groups % blocks
    segment = pid // (groups * blocks) % segments
    image = (pid // (groups * blocks) // segments).to(tl.int64)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    mask = None if CHANNELS % BLOCK == 0 else inside

    grad += image * grad_b
    u += image * u_b
    delta += tl.multiple_of(image * delta_b, ALIGNED)
    if not JOINED:
        B += image * B_b
        if C is not None:
            C += image * C_b
    if ends is None:
        du += (image * du_rows * groups + group) * CHANNELS + channel
        if CHUNK > TURN:
            scratch += pid.to(tl.int64) * (CHUNK // TURN) * BLOCK * N + tl.arange(0, BLOCK)

    for walked in tl.range(0, WALK, disable_licm=True):  # hoisting out of it would spill registers
        route = group * WALK + walked
        far = route.to(tl.int64) if WIDE else route
        scan = image * routes + route
        per_scan = scan * segments + segment

        grad_lanes = grad + far * grad_k + channel
        u_lanes = u + far * u_k + channel
        delta_rows = delta + tl.multiple_of(far * delta_k, ALIGNED)
        if JOINED:
            projections = (delta_rows + BEHIND, delta_s, None, 0)
        elif C is None:
            projections = (B + far * B_k, B_s, None, 0)
        else:
            projections = (B + far * B_k, B_s, C + far * C_k, C_s)
        only_B = (projections[0], projections[1], None, 0)
        token_of = None
        if order is not None:
            token_of = order + route * (steps + AHEAD)
        inputs = (u_lanes, u_s, delta_rows, delta_s, only_B)

        zero = tl.zeros((BLOCK,), tl.float32)
        a = load_states(A + route * A_k + channel * N, 1, inside, N, zero)
        a_sum = load_states(None, 1, inside, N, zero)
        s = load_states(None if entries is None else entries + (per_scan * CHANNELS + channel) * N, 1, inside, N, zero)
        skip, bias2, w = load_parameters(
            weight, bias, D, delta, route, weight_k, bias_k, D_k, channel, inside, RANK, RANKS
        )
        total = zero
        d_sum = zero
        bias_sum = zero
        if ends is None:
            shares_at = shares + ((image * rows * routes + route) * blocks + block) * SHARES
            dz_at = dz + (image * rows * routes + route) * CHANNELS + channel

        first = segment * segment_steps
        turns = tl.cdiv(tl.minimum(first + segment_steps, steps) - first, TURN)
        for back in range(0, turns):
            t0 = first + (turns - 1 - back) * TURN
            if LEAN:
                c0 = t0 // CHUNK * CHUNK
                saved = states + (scan * chunks + t0 // CHUNK) * CHANNELS * N + channel
                if back == 0 or t0 - c0 == CHUNK - TURN:
                    save_states_of_turns(
                        saved, scratch, inputs, token_of, (a, bias2, w), channel, mask, c0, t0, steps, sizes, form
                    )
            tokens, raw = load_step_sizes(delta_rows, delta_s, token_of, channel, mask, t0, steps, TURN, form)
            dys = load_rows(grad_lanes, grad_s, tokens, t0, steps, mask, GRAD_BY_STEP, PADDED, WIDE)
            if LEAN:
                b, c = load_projections(only_B, tokens, t0, steps, N, WORD, form)
            else:
                b, c = load_projections(projections, tokens, t0, steps, BOTH, WORD, form)
            if ends is None:
                x = load_rows(u_lanes, u_s, tokens, t0, steps, mask, U_BY_STEP, PADDED, WIDE)
                if WALK > 1:  # sums of the routes walked before
                    earlier = load_rows(
                        du, groups * CHANNELS, tokens, t0, steps, inside & (walked > 0), DU_BY_STEP, PADDED, WIDE
                    )
                saved = states + (scan * chunks + t0 // CHUNK) * CHANNELS * N + channel
                if CHUNK == TURN:
                    h = load_states(saved, CHANNELS, inside, N, zero)
            z = logits(raw, w, bias2, TURN, RANK, PRECISION)
            l = ()
            dy = ()
            for i in tl.static_range(TURN):
                live = t0 + i < steps
                l = l + (tl.where(live, softplus2(z[i], LOG), 0.0),)
                if PADDED:
                    live = live & (tokens[i] >= 0)
                dy = dy + (tl.where(live, dys[i], 0.0).to(dys[i].dtype),)

            if ends is not None:
                for i in tl.static_range(TURN - 1, -1, -1):
                    dy_i = dy[i].to(tl.float32)
                    before_s = ()
                    for n in tl.static_range(N):
                        if C is None:
                            g = s[n] + dy_i
                        elif JOINED:
                            g = s[n] + dy_i * element(b[i], N + n, WORD, DTYPE)
                        else:
                            g = s[n] + dy_i * element(c[i], n, WORD, DTYPE)
                        before_s = before_s + (tl.exp2(l[i] * a[n]) * g,)
                    s = before_s
                    total += l[i]
            else:
                if CHUNK > TURN:
                    c0 = t0 // CHUNK * CHUNK
                    if not LEAN:  # here the turn's rows arrive meanwhile
                        if back == 0 or t0 - c0 == CHUNK - TURN:
                            save_states_of_turns(
                                saved,
                                scratch,
                                inputs,
                                token_of,
                                (a, bias2, w),
                                channel,
                                mask,
                                c0,
                                t0,
                                steps,
                                sizes,
                                form,
                            )
                    h = load_states(scratch + (t0 - c0) // TURN * N * BLOCK, BLOCK, None, N, zero)

                before = ()  # the states before each step
                for i in tl.static_range(TURN):
                    before = before + (h,)
                    if i < TURN - 1:
                        h = advance_lanes(h, l[i], x[i].to(tl.float32), b[i], a, WORD, DTYPE)

                all_B = ()
                all_C = ()
                for i in tl.static_range(TURN - 1, -1, -1):
                    t = t0 + i
                    live = t < steps
                    known = live
                    if PADDED:
                        known = live & (tokens[i] >= 0)
                    step_delta = l[i] * LN2
                    x_i = x[i].to(tl.float32)
                    dy_i = dy[i].to(tl.float32)
                    dx_i = step_delta * x_i
                    q = tl.zeros((BLOCK,), tl.float32)
                    ddelta = tl.zeros((BLOCK,), tl.float32)
                    before_s = ()
                    next_sum = ()
                    of_B = ()
                    of_C = ()
                    if LEAN:
                        b_i, c_i = load_projections(projections, (tokens[i],), t, steps, BOTH, WORD, form)
                        b_i = b_i[0]
                        c_i = b_i if C is None or JOINED else c_i[0]
                    else:
                        b_i = b[i]
                        c_i = b_i if C is None or JOINED else c[i]
                    for n in tl.static_range(N):
                        b_n = element(b_i, n, WORD, DTYPE)
                        decay = tl.exp2(l[i] * a[n])
                        kept = decay * before[i][n]  # a h_prev
                        if C is None:
                            g = dy_i + s[n]
                        else:
                            c_n = element(c_i, n + N if JOINED else n, WORD, DTYPE)
                            g = dy_i * c_n + s[n]
                            after = before[i + 1][n] if i < TURN - 1 and not LEAN else kept + dx_i * b_n
                            of_C = of_C + (fold(after * dy_i),)
                        q += g * b_n
                        of_B = of_B + (fold(g * dx_i),)
                        gk = g * kept
                        ddelta += gk * a[n]
                        next_sum = next_sum + (a_sum[n] + gk * step_delta,)
                        before_s = before_s + (decay * g,)
                    s = before_s
                    a_sum = next_sum
                    ddelta += x_i * q

                    share = shares_at + row_offset(tokens[i], t, routes * blocks * SHARES, DX_BY_STEP, WIDE)
                    share_mask = live if BY_STEP else known
                    if not TOGETHER:
                        for n in tl.static_range(N):
                            tl.store(share + n, tl.sum(of_B[n], 0), mask=share_mask)
                            if C is not None:
                                tl.store(share + N + n, tl.sum(of_C[n], 0), mask=share_mask)
                    elif N == 1:
                        all_B = of_B + all_B
                        all_C = of_C + all_C
                    else:
                        column = tl.arange(0, 32)
                        tl.store(share + column, lane_sums(of_B + of_C), mask=(column < 2 * N) & share_mask)

                    dx = step_delta * q
                    if D is not None:
                        dx += skip * dy_i
                        d_sum += dy_i * x_i
                    if WALK > 1:
                        dx += earlier[i].to(tl.float32)
                    tl.store(
                        du + row_offset(tokens[i], t, groups * CHANNELS, DU_BY_STEP, WIDE),
                        dx,
                        mask=inside & (live if U_BY_STEP else known),
                    )
                    # times the sigmoid of z, 2^(z - l) = 1 - 2^-l; the second needs no z but cancels where l is small
                    if LOG == "none":
                        dzi = tl.where(live, ddelta, 0.0)
                    elif LOG == "polynomial":
                        dzi = tl.where(live, ddelta * tl.exp2(z[i] - l[i]), 0.0)
                    else:
                        dzi = tl.where(live, ddelta * (1.0 - tl.exp2(-l[i])), 0.0)
                    bias_sum += dzi
                    tl.store(
                        dz_at + row_offset(tokens[i], t, routes * CHANNELS, DX_BY_STEP, WIDE),
                        dzi,
                        mask=inside & (live if BY_STEP else known),
                    )

                if N == 1 and TOGETHER:
                    column = tl.arange(0, 32)  # TURN steps of B, then of C
                    t = t0 + column % TURN
                    token = t
                    if order is not None:
                        token = tl.load(token_of + t)
                    written = (column < 2 * TURN) & (t < steps)
                    if PADDED and not BY_STEP:
                        written = written & (token >= 0)
                    at = row_offset(token, t, routes * blocks * SHARES, DX_BY_STEP, WIDE) + column // TURN % 2
                    tl.store(shares_at + at, lane_sums(all_B + all_C), mask=written)

        for n in tl.static_range(N):
            if ends is not None:
                tl.store(ends + (per_scan * CHANNELS + channel) * N + n, s[n], mask=inside)
            else:
                tl.store(dA + (per_scan * CHANNELS + channel) * N + n, a_sum[n], mask=inside)
                if dinitial is not None:
                    tl.store(dinitial + (scan * CHANNELS + channel) * N + n, s[n], mask=inside & (segment == 0))
        if ends is not None:
            tl.store(sums + per_scan * CHANNELS + channel, total, mask=inside)
        else:
            if D is not None:
                tl.store(dD + per_scan * CHANNELS + channel, d_sum, mask=inside)
            if bias is not None:
                tl.store(dbias + per_scan * CHANNELS + channel, bias_sum, mask=inside)
        if WALK > 1:
            tl.debug_barrier()  # the next walk reads what this one wrote
