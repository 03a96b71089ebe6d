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
    ALIGNED: tl.constexpr,
    BY_STEP: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sixteen rows of a low-rank delta from step t0 on, (16, RANKS); rows are ALIGNED elements apart or multiples."""
    r = tl.arange(0, RANKS)
    t = t0 + tl.arange(0, 16)
    if order is not None and not BY_STEP:
        token = tl.load(order + t)
    else:
        t = tl.minimum(t, steps - 1)
        token = t
    row = tl.multiple_of(row_offset(token, t, stride, BY_STEP, WIDE), ALIGNED)
    at = delta + row[:, None] + r[None, :]
    mask = (r < RANK)[None, :]
    if PADDED and not BY_STEP:
        mask = mask & (token >= 0)[:, None]
    return tl.load(at, mask=mask, other=0.0)


@triton.jit
def load_raw(
    delta,
    channel,
    stride,
    order,
    mask,
    tokens,
    t0,
    steps,
    RANK: tl.constexpr,
    RANKS: tl.constexpr,
    ALIGNED: tl.constexpr,
    BY_STEP: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """What `logits` makes step sizes from: a tile of a low-rank delta, or the rows of a full one."""
    if RANK > 0:
        raw = load_rank_tile(delta, stride, order, t0, steps, RANK, RANKS, ALIGNED, BY_STEP, PADDED, WIDE)
    else:
        raw = load_rows(delta + channel, stride, tokens, t0, steps, mask, BY_STEP, PADDED, WIDE)
    return raw


@triton.jit
def logits(raw, weight, bias, COUNT: tl.constexpr, RANK: tl.constexpr, PRECISION: tl.constexpr):
    """Raw step sizes with bias, z / ln 2, of COUNT steps; `weight` is a low-rank delta's (RANKS, channels)."""
    if RANK > 0:
        raw = rows(tl.dot(raw, weight, input_precision=PRECISION), COUNT)
    z = ()
    for i in tl.static_range(COUNT):
        z = z + (raw[i].to(tl.float32) * LOG2E + bias,)
    return z


@triton.jit
def load_words(
    x,
    stride,
    tokens,
    t0,
    steps,
    COUNT: tl.constexpr,
    WORD: tl.constexpr,
    BY_STEP: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
):
    """COUNT elements of each step's row from x on, the same for all lanes, in words of WORD elements."""
    BITS: tl.constexpr = WORD * x.dtype.element_ty.primitive_bitwidth
    values = ()
    for i in tl.static_range(len(tokens)):
        row = x + row_offset(tokens[i], tl.minimum(t0 + i, steps - 1), stride, BY_STEP, WIDE)
        if WORD > 1:  # before the words are counted, so that they lie at fixed distances of one address
            row = row.to(tl.pointer_type(tl.int32 if BITS == 32 else tl.int64))
        words = ()
        for k in tl.static_range(COUNT // WORD):
            at = row + k
            if PADDED and not BY_STEP:
                words = words + (tl.load(at, mask=tokens[i] >= 0, other=0),)
            else:
                words = words + (tl.load(at),)
        values = values + (words,)
    return values


@triton.jit
def element(words, i: tl.constexpr, WORD: tl.constexpr, DTYPE: tl.constexpr):
    """The i-th element of a row of words, in float32."""
    word = words[i // WORD]
    if WORD == 1:
        value = word.to(tl.float32)
    elif DTYPE == tl.bfloat16:  # the upper half of a float32
        half = (word >> 32 if i % WORD >= 2 else word).to(tl.int32)
        value = (half & -65536 if i % 2 else half << 16).to(tl.float32, bitcast=True)
    elif DTYPE == tl.float16:
        value = (word >> i % WORD * 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        value = (word >> i % WORD * 32).to(tl.int32).to(tl.float32, bitcast=True)
    return value


@triton.jit
def load_step_sizes(delta, stride, order, channel, mask, t0, steps, TURN: tl.constexpr, form: tl.constexpr):
    """The turn's tokens, and its raw step sizes as `load_raw` has them.

    `form` are constants: (RANK, RANKS, ALIGNED, BY_STEP, PADDED, WIDE).
    """
    RANK: tl.constexpr = form[0]
    RANKS: tl.constexpr = form[1]
    ALIGNED: tl.constexpr = form[2]
    BY_STEP: tl.constexpr = form[3]
    PADDED: tl.constexpr = form[4]
    WIDE: tl.constexpr = form[5]
    tokens = load_tokens(order, t0, steps, TURN)
    raw = load_raw(delta, channel, stride, order, mask, tokens, t0, steps, RANK, RANKS, ALIGNED, BY_STEP, PADDED, WIDE)
    return tokens, raw


@triton.jit
def load_projections(rows, tokens, t0, steps, N: tl.constexpr, WORD: tl.constexpr, form: tl.constexpr):
    """N elements of each step's B and C in words; `rows` is (B, its distance of rows, C, distance).

    Where C is None it is read with B, if at all. `form` as in `load_step_sizes`.
    """
    B, B_s, C, C_s = rows
    BY_STEP: tl.constexpr = form[3]
    PADDED: tl.constexpr = form[4]
    WIDE: tl.constexpr = form[5]
    b = load_words(B, B_s, tokens, t0, steps, N, WORD, BY_STEP, PADDED, WIDE)
    c = ()
    if C is not None:
        c = load_words(C, C_s, tokens, t0, steps, N, WORD, BY_STEP, PADDED, WIDE)
    return b, c


@triton.jit
def load_states(x, stride, mask, N: tl.constexpr, like):
    """The N numbers of each channel, `stride` apart, as a tuple; zeros where x is None."""
    values = ()
    for n in tl.static_range(N):
        if x is None:
            values = values + (tl.zeros_like(like),)
        else:
            values = values + (tl.load(x + n * stride, mask=mask, other=None if mask is None else 0.0),)
    return values


@triton.jit
def load_parameters(
    weight, bias, D, delta, route, weight_k, bias_k, D_k, channel, inside, RANK: tl.constexpr, RANKS: tl.constexpr
):
    """D, the bias in units of ln 2, the weight (RANKS, channels) of a low-rank delta in its dtype; 0 for the absent."""
    skip = 0.0
    if D is not None:
        skip = tl.load(D + route * D_k + channel, mask=inside, other=0.0)
    bias2 = 0.0
    if bias is not None:
        bias2 = tl.load(bias + route * bias_k + channel, mask=inside, other=0.0) * LOG2E
    w = 0.0
    if RANK > 0:
        r = tl.arange(0, RANKS)
        at = weight + route * weight_k + channel[None, :] * RANK + r[:, None]
        w = tl.load(at, mask=inside[None, :] & (r < RANK)[:, None], other=0.0).to(delta.dtype.element_ty)
    return skip, bias2, w


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
    """`logits` of the rows of the turn's steps."""
    raw = load_raw(delta, channel, stride, order, mask, tokens, t0, steps, RANK, RANKS, 1, BY_STEP, PADDED, WIDE)
    return logits(raw, weight, bias, len(tokens), RANK, PRECISION)
