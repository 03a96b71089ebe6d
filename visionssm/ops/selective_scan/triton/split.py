"""Sequences split among programs: from what each segment does alone to the state each segment begins with."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["segments"])
def join_segments_kernel(
    ends,
    sums,
    start,
    A,
    A_k,
    routes,
    segments,
    CHANNELS: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Replace the segments' last states, each begun from zero, by their entry states; REVERSE walks from the end.

    The first segment walked is entered with `start`, or with zeros.

    A segment multiplies the state it is given by 2^(A sum(l)), for all N states with one sum.
    """
    scan = tl.program_id(0).to(tl.int64)
    element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # of (CHANNELS, N)
    mask = element < CHANNELS * N
    a = tl.load(A + scan % routes * A_k + element, mask=mask, other=0.0)
    h = tl.zeros((BLOCK,), tl.float32)
    if start is not None:
        h = tl.load(start + scan * CHANNELS * N + element, mask=mask, other=0.0)
    for i in range(0, segments):
        segment = scan * segments + (segments - 1 - i if REVERSE else i)
        at = ends + segment * CHANNELS * N + element
        end = tl.load(at, mask=mask, other=0.0)
        total = tl.load(sums + segment * CHANNELS + element // N, mask=mask, other=0.0)
        tl.store(at, h, mask=mask)
        h = tl.exp2(total * a) * h + end
