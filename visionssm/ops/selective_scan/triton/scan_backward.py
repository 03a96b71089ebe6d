"""The backward scan with many states: recomputed turn by turn from the saved ones, then walked down."""

import triton
import triton.language as tl

from .access import AHEAD, load_logits, load_parameters, load_rows, load_tokens, row_offset
from .mathematics import LN2, advance, softplus2


@triton.jit(do_not_specialize=["steps", "segments", "segment_steps", "chunks", "du_rows", "rows"])
def selective_scan_bwd_kernel(
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
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    SPAN: tl.constexpr,
    CHUNK: tl.constexpr,
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
    """Walk the turns of a segment from its last to its first.

    A program walks SPAN blocks of channels one after the other, and adds up what is summed over channels.
    Written per route: du (b, du_rows, K, CHANNELS) and dz (b, rows, K, CHANNELS), the gradient of the raw step size;
    per segment: dA, dD, dbias (b, K, segments, ...); per route and SPAN blocks, shares (b, rows, K, blocks / SPAN, ...)
    of what is summed over channels: N gradients of B and N of C. With `dinitial` (b, K, CHANNELS, N) the
    gradient of the state before the first step. With `entries` that of the state after each segment is found there.
    With `ends`, the first pass over a split sequence, only what a segment, begun from zero, hands to the one before.
    `scratch` holds the states at the turns' starts within one chunk, where a chunk has several turns.
    """
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    SHARES: tl.constexpr = 2 * N
    pid = tl.program_id(0)
    route = pid % routes
    spans: tl.constexpr = blocks // SPAN
    span = pid // routes % spans
    segment = pid // (routes * spans) % segments
    image = (pid // (routes * spans) // segments).to(tl.int64)
    n = tl.arange(0, STATES)

    grad += image * grad_b
    u += image * u_b
    delta += image * delta_b
    B += image * B_b
    C += image * C_b
    if ends is None:
        du += (image * du_rows * routes + route) * CHANNELS
        if CHUNK > TURN:
            scratch += pid.to(tl.int64) * (CHUNK // TURN) * BLOCK * STATES
            scratch_at = tl.arange(0, BLOCK)[:, None] * STATES + n[None, :]

    for walked in tl.range(0, SPAN, disable_licm=True):  # hoisting out of it would spill registers
        channel = (span * SPAN + walked) * BLOCK + tl.arange(0, BLOCK)
        inside = channel < CHANNELS
        mask = None if CHANNELS % BLOCK == 0 else inside
        far = route.to(tl.int64) if WIDE else route
        scan = image * routes + route
        per_scan = scan * segments + segment

        grad_lanes = grad + far * grad_k + channel
        u_lanes = u + far * u_k + channel
        delta_rows = delta + far * delta_k
        B_lanes = B + far * B_k
        C_lanes = C + far * C_k
        token_of = None
        if order is not None:
            token_of = order + route * (steps + AHEAD)

        state_at = channel[:, None] * N + n[None, :]
        B_lanes += n
        C_lanes += n
        n_mask = None if N == STATES else n < N
        state_mask = inside[:, None] & (n < N)[None, :]
        a = tl.load(A + route * A_k + state_at, mask=state_mask, other=0.0)
        skip, bias2, w = load_parameters(
            weight, bias, D, delta, route, weight_k, bias_k, D_k, channel, inside, RANK, RANKS
        )

        if entries is not None:
            s = tl.load(entries + per_scan * CHANNELS * N + state_at, mask=state_mask, other=0.0)
        else:
            s = a * 0.0
        total = tl.zeros((BLOCK,), tl.float32)
        a_sum = a * 0.0
        d_sum = tl.zeros((BLOCK,), tl.float32)
        bias_sum = tl.zeros((BLOCK,), tl.float32)
        if ends is None:
            du_lanes = du + channel
            shares_at = shares + ((image * rows * routes + route) * spans + span) * SHARES + n
            dz_at = dz + (image * rows * routes + route) * CHANNELS + channel

        first = segment * segment_steps
        turns = tl.cdiv(tl.minimum(first + segment_steps, steps) - first, TURN)
        for back in range(0, turns):
            t0 = first + (turns - 1 - back) * TURN
            tokens = load_tokens(token_of, t0, steps, TURN)
            z = load_logits(
                delta_rows,
                channel,
                delta_s,
                w,
                bias2,
                token_of,
                mask,
                tokens,
                t0,
                steps,
                RANK,
                RANKS,
                BY_STEP,
                PADDED,
                WIDE,
                PRECISION,
            )
            dys = load_rows(grad_lanes, grad_s, tokens, t0, steps, mask, GRAD_BY_STEP, PADDED, WIDE)
            c = load_rows(C_lanes, C_s, tokens, t0, steps, n_mask, BY_STEP, PADDED, WIDE)
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
                    g = s + dy[i].to(tl.float32)[:, None] * c[i].to(tl.float32)[None, :]
                    s = tl.exp2(l[i][:, None] * a) * g
                    total += l[i]
            else:
                x = load_rows(u_lanes, u_s, tokens, t0, steps, mask, U_BY_STEP, PADDED, WIDE)
                b = load_rows(B_lanes, B_s, tokens, t0, steps, n_mask, BY_STEP, PADDED, WIDE)
                # the state before the turn
                c0 = t0 // CHUNK * CHUNK
                saved = states + (scan * chunks + t0 // CHUNK) * CHANNELS * N + state_at
                if CHUNK == TURN:
                    h = tl.load(saved, mask=state_mask, other=0.0)
                else:
                    if back == 0 or t0 - c0 == CHUNK - TURN:
                        h = tl.load(saved, mask=state_mask, other=0.0)
                        for turn in range(0, (t0 - c0) // TURN):
                            tl.store(scratch + turn * BLOCK * STATES + scratch_at, h)
                            t1 = c0 + turn * TURN
                            tokens1 = load_tokens(token_of, t1, steps, TURN)
                            z1 = load_logits(
                                delta_rows,
                                channel,
                                delta_s,
                                w,
                                bias2,
                                token_of,
                                mask,
                                tokens1,
                                t1,
                                steps,
                                RANK,
                                RANKS,
                                BY_STEP,
                                PADDED,
                                WIDE,
                                PRECISION,
                            )
                            x1 = load_rows(u_lanes, u_s, tokens1, t1, steps, mask, U_BY_STEP, PADDED, WIDE)
                            b1 = load_rows(B_lanes, B_s, tokens1, t1, steps, n_mask, BY_STEP, PADDED, WIDE)
                            for i in tl.static_range(TURN):
                                h = advance(h, softplus2(z1[i], LOG), x1[i].to(tl.float32), b1[i].to(tl.float32), a)
                        tl.store(scratch + (t0 - c0) // TURN * BLOCK * STATES + scratch_at, h)
                        tl.debug_barrier()
                    h = tl.load(scratch + (t0 - c0) // TURN * BLOCK * STATES + scratch_at)

                before = ()  # the state before each step
                for i in tl.static_range(TURN):
                    before = before + (h,)
                    if i < TURN - 1:
                        h = advance(h, l[i], x[i].to(tl.float32), b[i].to(tl.float32), a)

                for i in tl.static_range(TURN - 1, -1, -1):
                    t = t0 + i
                    live = t < steps
                    known = live
                    if PADDED:
                        known = live & (tokens[i] >= 0)
                    step_delta = l[i] * LN2
                    x_i = x[i].to(tl.float32)
                    dy_i = dy[i].to(tl.float32)
                    b_i = b[i].to(tl.float32)
                    c_i = c[i].to(tl.float32)
                    share = shares_at + row_offset(tokens[i], t, routes * spans * SHARES, DX_BY_STEP, WIDE)
                    share_mask = live if BY_STEP else known
                    share_mask = share_mask & (n < N)
                    if SPAN > 1:  # sums of the blocks walked before
                        earlier_mask = share_mask & (walked > 0)
                        earlier_B = tl.load(share, mask=earlier_mask, other=0.0)
                        earlier_C = tl.load(share + N, mask=earlier_mask, other=0.0)
                    decay = tl.exp2(l[i][:, None] * a)
                    kept = decay * before[i]
                    g = dy_i[:, None] * c_i[None, :] + s
                    h = kept + (step_delta * x_i)[:, None] * b_i[None, :]
                    share_C = tl.sum(h * dy_i[:, None], 0)
                    q = tl.sum(g * b_i[None, :], 1)
                    share_B = tl.sum(g * (step_delta * x_i)[:, None], 0)
                    if SPAN > 1:
                        share_B += earlier_B
                        share_C += earlier_C
                    tl.store(share + N, share_C, mask=share_mask)
                    tl.store(share, share_B, mask=share_mask)
                    gk = g * kept
                    ddelta = tl.sum(gk * a, 1) + x_i * q
                    a_sum += gk * step_delta[:, None]
                    s = decay * g
                    dx = step_delta * q
                    if D is not None:
                        dx += skip * dy_i
                        d_sum += dy_i * x_i
                    tl.store(
                        du_lanes + row_offset(tokens[i], t, routes * CHANNELS, DU_BY_STEP, WIDE),
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

        if ends is not None:
            tl.store(ends + per_scan * CHANNELS * N + state_at, s, mask=state_mask)
            tl.store(sums + per_scan * CHANNELS + channel, total, mask=inside)
        else:
            tl.store(dA + per_scan * CHANNELS * N + state_at, a_sum, mask=state_mask)
            if D is not None:
                tl.store(dD + per_scan * CHANNELS + channel, d_sum, mask=inside)
            if bias is not None:
                tl.store(dbias + per_scan * CHANNELS + channel, bias_sum, mask=inside)
            if dinitial is not None:
                tl.store(dinitial + scan * CHANNELS * N + state_at, s, mask=state_mask & (segment == 0))
        if SPAN > 1:
            tl.debug_barrier()  # the next walk reads what this one wrote
