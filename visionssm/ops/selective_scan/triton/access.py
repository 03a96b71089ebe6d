"""Device functions: reading the rows of one turn, a few consecutive scan steps, through the scan's order.

Offsets within an image are 32-bit where they fit (WIDE false, decided by the host); the image's own offset never is.
Steps beyond the end read the last step's rows again: the caller gives them no weight, and loads need no mask for them.
An order table goes on with each route's last entry for AHEAD steps, so its reads need no clamp.
"""

import triton
import triton.language as tl

from .mathematics import LOG2E, rows

AHEAD: tl.constexpr = tl.constexpr(32)  # entries after a route's last that may be read: two turns of the longest kind


@triton.jit
def load_tokens(order, t0, steps, TURN: tl.constexpr):
    """The token of each step of the turn, -1 for a zero token; without an order the step itself."""
    tokens = ()
    for i in tl.static_range(TURN):
        if order is not None:
            t = tl.load(order + t0 + i)
        else:
            t = tl.minimum(t0 + i, steps - 1)
        tokens = tokens + (t,)
    return tokens


@triton.jit
def row_offset(token, t, stride, BY_STEP: tl.constexpr, WIDE: tl.constexpr):
    """Where a row begins that is stored by step or by token."""
    row = t if BY_STEP else token
    return row.to(tl.int64) * stride if WIDE else row * stride


@triton.jit
def load_row(x, stride, token, t, steps, mask, BY_STEP: tl.constexpr, PADDED: tl.constexpr, WIDE: tl.constexpr):
    """The row of step t or of its token; zero, unless stored by step, at a zero token.

    Not yet converted: two bfloat16 values wait in one register.
    """
    at = x + row_offset(token, tl.minimum(t, steps - 1), stride, BY_STEP, WIDE)
    if PADDED and not BY_STEP:
        if mask is None:
            value = tl.load(at, mask=token >= 0, other=0.0)
        else:
            value = tl.load(at, mask=mask & (token >= 0), other=0.0)
    elif mask is None:
        value = tl.load(at)
    else:
        value = tl.load(at, mask=mask, other=0.0)
    return value


@triton.jit
def load_rows(x, stride, tokens, t0, steps, mask, BY_STEP: tl.constexpr, PADDED: tl.constexpr, WIDE: tl.constexpr):
    """Rows of the turn's steps, x pointing at the first one."""
    values = ()
    for i in tl.static_range(len(tokens)):
        values = values + (load_row(x, stride, tokens[i], t0 + i, steps, mask, BY_STEP, PADDED, WIDE),)
    return values


@triton.jit
def load_rank_tile(
    delta,
    stride,
    order,
    t0,
    steps,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BY_STEP: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sixteen rows of a low-rank delta from step t0 on, (16, RANKS)."""
    r = tl.arange(0, RANKS)
    t = t0 + tl.arange(0, 16)
    if order is not None and not BY_STEP:
        token = tl.load(order + t)
    else:
        t = tl.minimum(t, steps - 1)
        token = t
    at = delta + row_offset(token, t, stride, BY_STEP, WIDE)[:, None] + r[None, :]
    mask = (r < RANK)[None, :]
    if PADDED and not BY_STEP:
        mask = mask & (token >= 0)[:, None]
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def load_logits(
    delta,
    channel,
    stride,
    weight,
    bias,
    order,
    mask,
    tokens,
    t0,
    steps,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    BY_STEP: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Raw step sizes with bias, z / ln 2, of the turn; `weight` is the (RANKS, channels) tile of a low-rank delta."""
    if RANK > 0:
        tile = load_rank_tile(delta, stride, order, t0, steps, RANK, RANKS, BY_STEP, PADDED, WIDE)
        raw = rows(tl.dot(tile, weight, input_precision=PRECISION), len(tokens))
    else:
        raw = load_rows(delta + channel, stride, tokens, t0, steps, mask, BY_STEP, PADDED, WIDE)
    z = ()
    for i in tl.static_range(len(tokens)):
        z = z + (raw[i].to(tl.float32) * LOG2E + bias,)
    return z
