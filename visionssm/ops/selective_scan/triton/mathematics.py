"""Device functions: logarithms to base two, softplus, tiles cut into rows, sums over lanes.

The kernels keep step sizes in units of ln 2: with l = log2(1 + e^z), delta = l ln 2 and the decay e^(delta A) is
2^(l A), so that every exponential is one instruction.
"""

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def log2_approx(x, PTX: tl.constexpr):
    """log2 of x >= 1, absolute error 2^-22 with PTX: one instruction, where `tl.log2` expands to some thirty."""
    if PTX:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.log2(x)


@triton.jit
def log2_of_one_plus(t):
    """log2(1 + t) for t in [0, 1], relative error 2e-7: t times a minimax polynomial of degree 7."""
    q = t * -0.01231947261840105 + 0.06360789388418198
    q = q * t - 0.1553518921136856
    q = q * t + 0.2560097575187683
    q = q * t - 0.35339483618736267
    q = q * t + 0.48006370663642883
    q = q * t - 0.7213100790977478
    q = q * t + 1.4426947832107544
    return q * t


@triton.jit
def softplus2(z, LOG: tl.constexpr):
    """softplus in units of ln 2, log2(1 + 2^z), for z in units of ln 2.

    LOG chooses the logarithm: "polynomial" keeps small values relatively exact, on the FMA pipe; "ptx" and "log2" are
    shorter and lose relative accuracy below about 1e-3, where bfloat16 and float16 inputs have lost it before. "none"
    leaves z as it is: a scan without softplus. NaN stays NaN: minima and maxima of a GPU would drop it.
    """
    if LOG == "none":
        return z
    elif LOG == "polynomial":
        return tl.maximum(z, 0.0) + log2_of_one_plus(tl.exp2(-tl.abs(z)))
    else:
        return tl.where(z < 64.0, log2_approx(1.0 + tl.exp2(z), LOG == "ptx"), z)


@triton.jit
def advance(h, l, x, b, a):
    """The state after one step, (BLOCK,) or (BLOCK, STATES)."""
    if len(h.shape) == 1:
        return tl.exp2(l * a) * h + l * x * (b * LN2)
    else:
        return tl.exp2(l[:, None] * a) * h + (l * x)[:, None] * (b * LN2)[None, :]


@triton.jit
def halves(x):
    """The upper and the lower half of the rows of x."""
    count: tl.constexpr = x.shape[0] // 2
    return tl.split(tl.permute(tl.reshape(x, (2, count, x.shape[1])), (1, 2, 0)))


@triton.jit
def rows2(x):
    a, b = halves(x)
    return tl.reshape(a, (x.shape[1],)), tl.reshape(b, (x.shape[1],))


@triton.jit
def rows4(x):
    a, b = halves(x)
    return rows2(a) + rows2(b)


@triton.jit
def rows8(x):
    a, b = halves(x)
    return rows4(a) + rows4(b)


@triton.jit
def rows(x, COUNT: tl.constexpr):
    """The first COUNT of the sixteen rows of x as a tuple; a tree of splits leaves each row in registers."""
    a, b = halves(x)
    if COUNT == 16:
        return rows8(a) + rows8(b)
    elif COUNT == 8:
        return rows8(a)
    else:
        tl.static_assert(COUNT == 4, "turns have 4, 8 or 16 steps")
        c, d = halves(a)
        return rows4(c)


@triton.jit
def lane_sums(x, STEP: tl.constexpr = 1):
    """Sums of the vectors of x, 1, 2, 4, ... or 32 of them: element i of the result, of 32, is that of x[i % len(x)].

    An exchange between lanes halves the vectors: each lane keeps its part of one of two and gives away the other's.
    """
    lane = tl.arange(0, 32)
    if STEP == 32:
        total = x[0]
    elif len(x) == 1:
        total = lane_sums((x[0] + tl.gather(x[0], lane ^ STEP, 0),), STEP * 2)
    else:
        halved = ()
        for i in tl.static_range(len(x) // 2):
            upper = (lane & STEP) != 0
            given = tl.where(upper, x[2 * i], x[2 * i + 1])
            halved = halved + (tl.where(upper, x[2 * i + 1], x[2 * i]) + tl.gather(given, lane ^ STEP, 0),)
        total = lane_sums(halved, STEP * 2)
    return total


@triton.jit
def fold(x):
    """x, of a multiple of 32 elements, added up to 32."""
    return x if x.shape[0] == 32 else tl.sum(tl.reshape(x, (32, x.shape[0] // 32)), 1)
