"""Sums over the routes, over blocks of channels, and over the steps that visit a token."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def merge_routes_kernel(
    x,
    out,
    u,
    D,
    u_s,
    u_k,
    D_k,
    rows,
    ROUTES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    SHARED: tl.constexpr,
):
    """out[row] = sum over routes of x[row, route] + D[route] u[row, route], in float32 and in the routes' order.

    SHARED: u has one route, so it is multiplied by the sum of D.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (row < rows)[:, None] & (channel < CHANNELS)[None, :]
    x += row[:, None] * (ROUTES * CHANNELS) + channel[None, :]
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    skip = tl.zeros((BLOCK,), tl.float32)
    if D is not None:
        u += row[:, None] * u_s + channel[None, :]
    for k in tl.static_range(ROUTES):
        total += tl.load(x + k * CHANNELS, mask=mask, other=0.0).to(tl.float32)
        if D is not None:
            skip_k = tl.load(D + k * D_k + channel, mask=channel < CHANNELS, other=0.0)
            if SHARED:
                skip += skip_k
            else:
                total += skip_k[None, :] * tl.load(u, mask=mask, other=0.0).to(tl.float32)
                u += u_k  # step by step: k * u_k may need more than 32 bits
    if D is not None and SHARED:
        total += skip[None, :] * tl.load(u, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * CHANNELS + channel[None, :], total, mask=mask)


@triton.jit(do_not_specialize=["rows", "bins"])
def gather_sum_kernel(x, out, start, index, rows, bins, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """out[image, bin] = sum of x[image, index[j]] over start[bin] <= j < start[bin + 1], in that order."""
    bin = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < CHANNELS
    total = tl.zeros((BLOCK,), tl.float32)
    for j in range(tl.load(start + bin), tl.load(start + bin + 1)):
        row = image * rows + tl.load(index + j)
        total += tl.load(x + row * CHANNELS + channel, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + (image * bins + bin) * CHANNELS + channel, total, mask=mask)


@triton.jit(do_not_specialize=["rows"])
def sum_shares_kernel(
    shares,
    dB,
    dC,
    rows,
    COUNT: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dB and dC (rows, N) from shares (rows, COUNT, 2 N), in float32 and in the order of the shares."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    known = (row < rows)[:, None]
    at = shares + row[:, None] * (COUNT * 2 * N) + column[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in range(COUNT):
        total += tl.load(at + i * 2 * N, mask=known & (column < 2 * N)[None, :], other=0.0)
    tl.store(dB + row[:, None] * N + column[None, :], total, mask=known & (column < N)[None, :])
    of_C = known & ((column >= N) & (column < 2 * N))[None, :]
    tl.store(dC + row[:, None] * N + (column - N)[None, :], total, mask=of_C)
