"""Device functions: reading the rows of one turn, a few consecutive scan steps, through the scan's order."""
import triton
import triton.language as tl

from .mathematics import LOG2E, rows


@triton.jit
def load_tokens(order, t0, steps, TURN: tl.constexpr):
    """The token of each step of the turn: -1 for a zero token, 0 beyond the end; without an order the step itself."""
    tokens = ()
    for i in tl.static_range(TURN):
        t = t0 + i
        if order is None:
            tokens = tokens + (t, )
        else:
            tokens = tokens + (tl.load(order + t, mask=t < steps, other=0), )
    return tokens


@triton.jit
def load_rows(x, stride, offsets, mask, tokens, t0, steps, BY_STEP: tl.constexpr, PADDED: tl.constexpr):
    """x at each step of the turn as float32, zero beyond the end and, unless stored by step, at zero tokens."""
    values = ()
    for i in tl.static_range(len(tokens)):
        t = t0 + i
        live = t < steps
        row = t if BY_STEP else tokens[i]
        if PADDED and not BY_STEP:
            live = live & (row >= 0)
        values = values + (tl.load(x + row.to(tl.int64) * stride + offsets, mask=mask & live, other=0.0).to(tl.float32), )
    return values


@triton.jit
def load_rank_tile(delta, stride, order, t0, steps, RANK: tl.constexpr, RANKS: tl.constexpr, TURN: tl.constexpr,
                   BY_STEP: tl.constexpr):
    """Sixteen rows of a low-rank delta, (16, RANKS); rows from TURN on, and of zero tokens, are zero."""
    i = tl.arange(0, 16)
    r = tl.arange(0, RANKS)
    t = t0 + i
    live = (i < TURN) & (t < steps)
    if BY_STEP or order is None:
        row = t
    else:
        row = tl.load(order + t, mask=live, other=-1)
        live = live & (row >= 0)
    return tl.load(delta + row.to(tl.int64)[:, None] * stride + r[None, :], mask=live[:, None] & (r < RANK)[None, :],
                   other=0.0)


@triton.jit
def load_logits(delta, stride, weight, bias, order, channel, mask, tokens, t0, steps, RANK: tl.constexpr,
                RANKS: tl.constexpr, TURN: tl.constexpr, BY_STEP: tl.constexpr, PADDED: tl.constexpr):
    """Raw step sizes with bias, z / ln 2, of the turn; `weight` is the (RANKS, channels) tile of a low-rank delta."""
    if RANK > 0:
        tile = load_rank_tile(delta, stride, order, t0, steps, RANK, RANKS, TURN, BY_STEP)
        raw = rows(tl.dot(tile, weight, input_precision="ieee"), TURN)
    else:
        raw = load_rows(delta, stride, channel, mask, tokens, t0, steps, BY_STEP, PADDED)
    z = ()
    for i in tl.static_range(TURN):
        z = z + (raw[i] * LOG2E + bias, )
    return z
