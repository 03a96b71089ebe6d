"""The kernels: a program walks the anti-diagonals of one image for BLOCK channels, all rows at a time.

Its states are a tile (ROWS, BLOCK, STATES) in registers, kept by row: what row i needs from the left was in row i one
anti-diagonal before, what it needs from above in row i - 1, which a gather fetches. What a row holds while it has no
cell is zero. All maps are contiguous; offsets within an image have 32 bits.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def shifted(h, by: tl.constexpr):
    """The rows `by` further down (-1: of the row above), the first or last one twice."""
    rows: tl.constexpr = h.shape[0]
    i = tl.minimum(tl.maximum(tl.arange(0, rows) + by, 0), rows - 1)
    return tl.gather(h, tl.broadcast_to(i[:, None, None], h.shape), 0)


@triton.jit
def load_cells(x, cell, valid, lane, inside, WIDTH: tl.constexpr):
    """(ROWS, lanes) of a map whose cells have WIDTH numbers, zero outside."""
    mask = valid[:, None] & inside[None, :]
    return tl.load(x + cell[:, None] * WIDTH + lane[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def decays(delta, A, shift, there):
    """What a state is multiplied by on its way into a cell, (ROWS, BLOCK, STATES); zero where there is none."""
    factor = tl.exp2(delta[:, :, None] * (A * LOG2E)[None, :, :] + shift[:, None, None])
    return tl.where(there[:, None, None], factor, 0.0)


@triton.jit
def step(h, x, delta_top, delta_left, A_top, A_left, B_top, B_left, shift, has_top, has_left, has_before, valid):
    """The states of an anti-diagonal from those before it."""
    share = tl.exp2(shift)
    input_top = (delta_top * x)[:, :, None] * (B_top * tl.where(has_top, share, 0.0)[:, None])[:, None, :]
    input_left = (delta_left * x)[:, :, None] * (B_left * tl.where(has_left, share, 0.0)[:, None])[:, None, :]
    after = decays(delta_top, A_top, shift, has_top) * shifted(h, -1) + input_top
    after += decays(delta_left, A_left, shift, has_before) * h + input_left
    return tl.where(valid[:, None, None], after, 0.0)


@triton.jit
def through(g, before, x, delta, A, B, shift, has_before, has_input):
    """Gradients through one direction, from g, that of a cell's states, and the states they come from.

    What is handed to those states, and the gradients of A, of x over delta, of B and of delta.
    """
    handed = g * decays(delta, A, shift, has_before)
    rate = handed * before  # gradient of delta A
    share = tl.where(has_input, tl.exp2(shift), 0.0)[:, None]
    of_x = tl.sum(g * (B * share)[:, None, :], 2)
    of_B = tl.sum(g * (delta * x)[:, :, None], 1) * share
    of_delta = of_x * x + tl.sum(rate * A[None, :, :], 2)
    return handed, tl.sum(rate * delta[:, :, None], 0), of_x, of_B, of_delta


@triton.jit
def where_on(t, HEIGHT, WIDTH, ROWS: tl.constexpr):
    """Of the rows on anti-diagonal t: whether each has a cell, its number, and what reaches it."""
    i = tl.arange(0, ROWS)
    j = t - i
    valid = (i < HEIGHT) & (j >= 0) & (j < WIDTH)
    has_top = i > 0
    has_before = j > 0
    has_left = has_before | (i == 0)  # the corner has the left direction's input
    shift = tl.where(has_top & has_before, -1.0, 0.0)
    return valid, i * WIDTH + j, has_top, has_left, has_before, shift


@triton.jit
def load_channels(A_top, A_left, D, c, n, CHANNELS: tl.constexpr, N: tl.constexpr):
    """Where the channels' numbers lie in (CHANNELS, N), which there are; both rates, D or zeros."""
    rates = c[:, None] * N + n[None, :]
    both = (c < CHANNELS)[:, None] & (n < N)[None, :]
    skip = tl.zeros((c.shape[0],), tl.float32)
    if D is not None:
        skip = tl.load(D + c, mask=c < CHANNELS, other=0.0)
    a_top = tl.load(A_top + rates, mask=both, other=0.0)
    return rates, both, a_top, tl.load(A_left + rates, mask=both, other=0.0), skip


@triton.jit
def wavefront_fwd_kernel(
    x,
    delta_top,
    delta_left,
    A_top,
    A_left,
    B_top,
    B_left,
    C,
    D,
    y,
    saved,
    HEIGHT,
    WIDTH,
    SEGMENT,
    segments,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """With `saved` the states before every SEGMENT-th anti-diagonal are kept, (b, segments, HEIGHT, CHANNELS, N)."""
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, n, i = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES), tl.arange(0, ROWS)
    inside, real = c < CHANNELS, n < N
    cells = image * HEIGHT * WIDTH
    x += cells * CHANNELS
    delta_top += cells * CHANNELS
    delta_left += cells * CHANNELS
    y += cells * CHANNELS
    B_top += cells * N
    B_left += cells * N
    C += cells * N
    rates, both, a_top, a_left, skip = load_channels(A_top, A_left, D, c, n, CHANNELS, N)
    state_at = i[:, None, None] * (CHANNELS * N) + rates[None, :, :]
    state_mask = (i < HEIGHT)[:, None, None] & both[None, :, :]

    h = tl.zeros((ROWS, BLOCK, STATES), tl.float32)
    for t in range(0, HEIGHT + WIDTH - 1):
        if saved is not None:
            if t % SEGMENT == 0:
                at = saved + (image * segments + t // SEGMENT) * HEIGHT * CHANNELS * N
                tl.store(at + state_at, h, mask=state_mask)
        valid, cell, has_top, has_left, has_before, shift = where_on(t, HEIGHT, WIDTH, ROWS)
        u = load_cells(x, cell, valid, c, inside, CHANNELS)
        h = step(
            h,
            u,
            load_cells(delta_top, cell, valid, c, inside, CHANNELS),
            load_cells(delta_left, cell, valid, c, inside, CHANNELS),
            a_top,
            a_left,
            load_cells(B_top, cell, valid, n, real, N),
            load_cells(B_left, cell, valid, n, real, N),
            shift,
            has_top,
            has_left,
            has_before,
            valid,
        )
        out = tl.sum(h * load_cells(C, cell, valid, n, real, N)[:, None, :], 2) + skip[None, :] * u
        tl.store(y + cell[:, None] * CHANNELS + c[None, :], out, mask=valid[:, None] & inside[None, :])


@triton.jit
def wavefront_bwd_kernel(
    grad,
    x,
    delta_top,
    delta_left,
    A_top,
    A_left,
    B_top,
    B_left,
    C,
    D,
    saved,
    scratch,
    dx,
    ddelta_top,
    ddelta_left,
    dA_top,
    dA_left,
    dB_top,
    dB_left,
    dC,
    dD,
    HEIGHT,
    WIDTH,
    SEGMENT,
    segments,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    STATES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Segment by segment from the last: recompute the states before its anti-diagonals into `scratch`, then go back.

    `scratch` is (b, SEGMENT, HEIGHT, CHANNELS, N). dA and dD are written for each image, dB and dC for each block.
    """
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c, n, i = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, STATES), tl.arange(0, ROWS)
    inside, real = c < CHANNELS, n < N
    cells = image * HEIGHT * WIDTH
    grad += cells * CHANNELS
    x += cells * CHANNELS
    delta_top += cells * CHANNELS
    delta_left += cells * CHANNELS
    dx += cells * CHANNELS
    ddelta_top += cells * CHANNELS
    ddelta_left += cells * CHANNELS
    B_top += cells * N
    B_left += cells * N
    C += cells * N
    partial = (block.to(tl.int64) * tl.num_programs(0) * HEIGHT * WIDTH + cells) * N
    dB_top += partial
    dB_left += partial
    dC += partial
    rates, both, a_top, a_left, skip = load_channels(A_top, A_left, D, c, n, CHANNELS, N)
    size = HEIGHT * CHANNELS * N
    state_at = i[:, None, None] * (CHANNELS * N) + rates[None, :, :]
    state_mask = (i < HEIGHT)[:, None, None] & both[None, :, :]
    saved += image * segments * size
    scratch += image * SEGMENT * size

    later = tl.zeros((ROWS, BLOCK, STATES), tl.float32)
    g_a_top = tl.zeros((BLOCK, STATES), tl.float32)
    g_a_left = tl.zeros((BLOCK, STATES), tl.float32)
    g_skip = tl.zeros((BLOCK,), tl.float32)
    for back in range(0, segments):
        segment = segments - 1 - back
        start = segment * SEGMENT
        count = tl.minimum(SEGMENT, HEIGHT + WIDTH - 1 - start)
        after = tl.load(saved + segment * size + state_at, mask=state_mask, other=0.0)
        for k in range(0, count):
            tl.store(scratch + k * size + state_at, after, mask=state_mask)
            valid, cell, has_top, has_left, has_before, shift = where_on(start + k, HEIGHT, WIDTH, ROWS)
            after = step(
                after,
                load_cells(x, cell, valid, c, inside, CHANNELS),
                load_cells(delta_top, cell, valid, c, inside, CHANNELS),
                load_cells(delta_left, cell, valid, c, inside, CHANNELS),
                a_top,
                a_left,
                load_cells(B_top, cell, valid, n, real, N),
                load_cells(B_left, cell, valid, n, real, N),
                shift,
                has_top,
                has_left,
                has_before,
                valid,
            )
        tl.debug_barrier()  # what other threads have stored
        for turn in tl.range(0, count, disable_licm=True):  # hoisting out of it would spill more
            k = count - 1 - turn
            valid, cell, has_top, has_left, has_before, shift = where_on(start + k, HEIGHT, WIDTH, ROWS)
            here = scratch + k * size + state_at
            h = tl.load(here, mask=state_mask, other=0.0)
            u = load_cells(x, cell, valid, c, inside, CHANNELS)
            dy = load_cells(grad, cell, valid, c, inside, CHANNELS)
            c_cell = load_cells(C, cell, valid, n, real, N)
            rows = cell[:, None] * N + n[None, :]
            rows_mask = valid[:, None] & real[None, :]
            lanes = cell[:, None] * CHANNELS + c[None, :]
            lanes_mask = valid[:, None] & inside[None, :]
            tl.store(dC + rows, tl.sum(after * dy[:, :, None], 1), mask=rows_mask)
            g = tl.where(valid[:, None, None], later + c_cell[:, None, :] * dy[:, :, None], 0.0)
            # a row whose cell is not on this anti-diagonal keeps what it has for the ones before
            later = tl.where(valid[:, None, None], 0.0, later)

            delta = load_cells(delta_left, cell, valid, c, inside, CHANNELS)
            b = load_cells(B_left, cell, valid, n, real, N)
            handed, g_a, g_u, g_b, g_delta = through(g, h, u, delta, a_left, b, shift, has_before, has_left)
            later += handed
            g_a_left += g_a
            g_x = g_u * delta + skip[None, :] * dy
            tl.store(dB_left + rows, g_b, mask=rows_mask)
            tl.store(ddelta_left + lanes, g_delta, mask=lanes_mask)

            delta = load_cells(delta_top, cell, valid, c, inside, CHANNELS)
            b = load_cells(B_top, cell, valid, n, real, N)
            # read anew, since no register is left to keep h while its rows move
            above = tl.load(here - CHANNELS * N, mask=state_mask & (i > 0)[:, None, None], other=0.0)
            handed, g_a, g_u, g_b, g_delta = through(g, above, u, delta, a_top, b, shift, has_top, has_top)
            later += tl.where((i < ROWS - 1)[:, None, None], shifted(handed, 1), 0.0)
            g_a_top += g_a
            tl.store(dB_top + rows, g_b, mask=rows_mask)
            tl.store(ddelta_top + lanes, g_delta, mask=lanes_mask)
            tl.store(dx + lanes, g_x + g_u * delta, mask=lanes_mask)
            g_skip += tl.sum(dy * u, 0)
            after = tl.load(here, mask=state_mask, other=0.0)
        tl.debug_barrier()  # what other threads still read
    tl.store(dA_top + image * CHANNELS * N + rates, g_a_top, mask=both)
    tl.store(dA_left + image * CHANNELS * N + rates, g_a_left, mask=both)
    if dD is not None:
        tl.store(dD + image * CHANNELS + c, g_skip, mask=inside)
