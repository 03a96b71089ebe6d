"""The forward scan with many states: one program walks a tile of channels and states of one or several routes."""

import triton
import triton.language as tl

from .access import AHEAD, load_logits, load_parameters, load_row, load_rows, load_tokens, row_offset
from .mathematics import advance, softplus2


@triton.jit(do_not_specialize=["steps", "segments", "segment_steps", "chunks"])
def selective_scan_fwd_kernel(
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
    STATES: tl.constexpr,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    TURN: tl.constexpr,
    WALK: tl.constexpr,
    CHUNK: tl.constexpr,
    U_BY_STEP: tl.constexpr,
    BY_STEP: tl.constexpr,
    OUT_BY_STEP: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
    LOG: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scan TURN steps per turn, all loads of a turn before its first step.

    A program walks WALK routes one after the other, each adding its output to what those before it wrote; the sequences
    are not split then, and no route visits a token twice. `out` has a row for each such group of routes.
    With `ends` nothing is written but each segment's last state, begun from zero, and its sum of step sizes: the first
    pass over a sequence split among programs. With `entries` a segment begins from the state found there. With
    `states` the state before every CHUNK-th step is kept, with `last_state` that after the last step, (b, K, CHANNELS,
    N). STATES, RANKS: N and RANK up to a power of two.
    """
    blocks: tl.constexpr = (CHANNELS + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    groups = routes // WALK
    group = pid % groups
    block = pid // groups % blocks
    segment = pid // (groups * blocks) % segments
    image = (pid // (groups * blocks) // segments).to(tl.int64)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    mask = None if CHANNELS % BLOCK == 0 else inside
    n = tl.arange(0, STATES)

    u += image * u_b
    delta += image * delta_b
    B += image * B_b
    C += image * C_b
    if out is not None:
        out += image * out_b + group * out_k + channel

    for walked in range(0, WALK):
        route = group * WALK + walked
        far = route.to(tl.int64) if WIDE else route
        scan = image * routes + route  # number of this sequence

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

        per_scan = scan * segments + segment
        if entries is not None:
            h = tl.load(entries + per_scan * CHANNELS * N + state_at, mask=state_mask, other=0.0)
        else:
            h = a * 0.0
        total = tl.zeros((BLOCK,), tl.float32)

        first = segment * segment_steps
        end = tl.minimum(first + segment_steps, steps)
        for turn in range(0, tl.cdiv(end - first, TURN)):
            t0 = first + turn * TURN
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
            x = load_rows(u_lanes, u_s, tokens, t0, steps, mask, U_BY_STEP, PADDED, WIDE)
            b = load_rows(B_lanes, B_s, tokens, t0, steps, n_mask, BY_STEP, PADDED, WIDE)
            if ends is None:
                c = load_rows(C_lanes, C_s, tokens, t0, steps, n_mask, BY_STEP, PADDED, WIDE)
            for i in tl.static_range(TURN):
                t = t0 + i
                live = t < steps
                if WALK > 1:  # the sum of the routes walked before
                    earlier = load_row(out, out_s, tokens[i], t, steps, inside & (walked > 0), False, PADDED, WIDE)
                if states is not None:
                    if i % CHUNK == 0:
                        if CHUNK <= TURN or t % CHUNK == 0:
                            tl.store(
                                states + (scan * chunks + t // CHUNK) * CHANNELS * N + state_at,
                                h,
                                mask=state_mask & live,
                            )
                l = tl.where(live, softplus2(z[i], LOG), 0.0)
                x_i = x[i].to(tl.float32)
                h = advance(h, l, x_i, b[i].to(tl.float32), a)
                if ends is not None:
                    total += l
                else:
                    y = tl.sum(h * c[i].to(tl.float32)[None, :], 1)
                    if D is not None:
                        y += skip * x_i
                    if WALK > 1:
                        y += earlier.to(tl.float32)
                    if PADDED:
                        seen = tokens[i] >= 0
                        if OUT_BY_STEP:
                            y = tl.where(seen, y, 0.0)
                        else:
                            live = live & seen
                    tl.store(out + row_offset(tokens[i], t, out_s, OUT_BY_STEP, WIDE), y, mask=inside & live)
        if ends is not None:
            tl.store(ends + per_scan * CHANNELS * N + state_at, h, mask=state_mask)
            tl.store(sums + per_scan * CHANNELS + channel, total, mask=inside)
        if last_state is not None:
            tl.store(last_state + scan * CHANNELS * N + state_at, h, mask=state_mask & (segment == segments - 1))
        if WALK > 1:
            tl.debug_barrier()  # the next route reads what this one wrote
