"""The causal convolution along scan orders as Triton kernels: order, taps and SiLU in one pass; deterministic.

A program has ROWS steps of one route and a block of channels. Backward: the first kernel takes the SiLU's gradient and
the shares of the parameters' gradients, the second collects for every token the steps that read it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .conv_backend import Conv
from .selective_scan.triton.access import AHEAD
from .selective_scan.triton.tables import TableUse, table_use, table_visits

ROWS = 32  # steps of one program


@triton.jit
def _rows(x, order, x_s, t, steps, channel, inside, TAPS: tl.constexpr):
    """What the taps read at the steps t, the last tap first: (ROWS, BLOCK) each, in x's dtype.

    Zero outside the sequence and at zero tokens.
    """
    read = ()
    for j in tl.static_range(TAPS):
        step = t - j
        known = (step >= 0) & (step < steps)
        token = step
        if order is not None:
            token = tl.load(order + step, mask=known, other=-1)
            known = known & (token >= 0)
        at = x + token.to(tl.int64)[:, None] * x_s + channel[None, :]
        read = read + (tl.load(at, mask=known[:, None] & inside[None, :], other=0.0),)  # type: ignore[assignment]
    return read


@triton.jit
def _taps_sum(read, weight, bias, channel, inside):
    """bias + the taps' products, (ROWS, BLOCK), float32."""
    TAPS: tl.constexpr = len(read)
    total = tl.zeros(read[0].shape, tl.float32)
    if bias is not None:
        total += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(TAPS):
        total += read[j].to(tl.float32) * _tap(weight, channel, inside, TAPS, TAPS - 1 - j)
    return total


@triton.jit
def _tap(weight, channel, inside, TAPS: tl.constexpr, i):
    return tl.load(weight + channel * TAPS + i, mask=inside, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _where(routes, steps, CHANNELS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's part of the steps, those steps, its route, image and channels, and which of them there are."""
    parts = tl.cdiv(steps, ROWS)
    scan, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    t = part * ROWS + tl.arange(0, ROWS)
    return part, t, scan % routes, (scan // routes).to(tl.int64), channel, channel < CHANNELS


@triton.jit(do_not_specialize=["steps"])
def causal_conv1d_fwd_kernel(
    x,
    weight,
    bias,
    order,
    out,
    x_b,
    x_s,
    x_k,
    weight_k,
    bias_k,
    routes,
    steps,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    AHEAD: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out (b, T, K, d) of x by token."""
    part, t, route, image, channel, inside = _where(routes, steps, CHANNELS, ROWS, BLOCK)
    if order is not None:
        order += route * (steps + AHEAD)
    if bias is not None:
        bias += route * bias_k
    x += image * x_b + route.to(tl.int64) * x_k
    weight += route * weight_k
    y = _taps_sum(_rows(x, order, x_s, t, steps, channel, inside, TAPS), weight, bias, channel, inside)
    if SILU:
        y = y * tl.sigmoid(y)
    row = (image * steps + t) * routes + route
    tl.store(out + row[:, None] * CHANNELS + channel[None, :], y, mask=(t < steps)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["steps"])
def causal_conv1d_parameters_kernel(
    grad,
    x,
    weight,
    bias,
    order,
    dsum,
    dweight,
    dbias,
    grad_b,
    grad_s,
    grad_k,
    x_b,
    x_s,
    x_k,
    weight_k,
    bias_k,
    routes,
    steps,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    AHEAD: tl.constexpr,
    SILU: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum's gradient, dsum (b, T, K, d), and each program's share of dweight (b, parts, K, d, TAPS) and dbias."""
    part, t, route, image, channel, inside = _where(routes, steps, CHANNELS, ROWS, BLOCK)
    if order is not None:
        order += route * (steps + AHEAD)
    if bias is not None:
        bias += route * bias_k
    x += image * x_b + route.to(tl.int64) * x_k
    weight += route * weight_k
    mask = (t < steps)[:, None] & inside[None, :]
    at = grad + image * grad_b + t.to(tl.int64)[:, None] * grad_s + route.to(tl.int64) * grad_k + channel[None, :]
    g = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    read = _rows(x, order, x_s, t, steps, channel, inside, TAPS)
    if SILU:
        y = _taps_sum(read, weight, bias, channel, inside)
        half = tl.sigmoid(y)
        g = tl.where(mask, g * half * (1.0 + y * (1.0 - half)), 0.0)
    row = (image * steps + t) * routes + route
    tl.store(dsum + row[:, None] * CHANNELS + channel[None, :], g, mask=mask)
    share = ((image * tl.cdiv(steps, ROWS) + part) * routes + route) * CHANNELS + channel
    if dbias is not None:
        tl.store(dbias + share, tl.sum(g, 0), mask=inside)
    for j in tl.static_range(TAPS):
        tl.store(dweight + share * TAPS + (TAPS - 1 - j), tl.sum(g * read[j].to(tl.float32), 0), mask=inside)


@triton.jit(do_not_specialize=["steps", "bins"])
def causal_conv1d_input_kernel(
    dsum,
    weight,
    start,
    index,
    dx,
    weight_k,
    routes,
    steps,
    bins,
    CHANNELS: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dx (b, bins, d): over the rows index[start[bin]:start[bin + 1]], step and route, that read each bin."""
    bin, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    total = tl.zeros((BLOCK,), tl.float32)
    for visit in range(tl.load(start + bin), tl.load(start + bin + 1)):
        row = tl.load(index + visit)
        t, route = row // routes, row % routes
        for j in tl.static_range(TAPS):
            at = dsum + ((image * steps + t + j) * routes + route) * CHANNELS + channel
            g = tl.load(at, mask=inside & (t + j < steps), other=0.0).to(tl.float32)
            tap = tl.load(weight + route * weight_k + channel * TAPS + TAPS - 1 - j, mask=inside, other=0.0)
            total += g * tap.to(tl.float32)
    tl.store(dx + (image * bins + bin) * CHANNELS + channel, total, mask=inside)


def forward(conv: Conv) -> Tensor:
    """As `ConvBackend` says."""
    with torch.cuda.device_of(conv.x):
        x, arguments, grid = _arguments(conv, 128)
        out = x.new_empty((x.shape[0], conv.steps, conv.routes, x.shape[3]))
        causal_conv1d_fwd_kernel[grid](out=out, **arguments)
        return out


def backward(grad: Tensor, conv: Conv) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `ConvBackend` says."""
    with torch.cuda.device_of(conv.x):
        x, arguments, grid = _arguments(conv, 64)  # with more channels a program spills registers
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        b, L, kx, d = x.shape
        weight, bias = arguments["weight"], arguments["bias"]
        K, taps = conv.routes, weight.shape[2]
        parts = -(-conv.steps // ROWS)
        # float16 could overflow
        wide = torch.bfloat16 if x.dtype == torch.bfloat16 else torch.float32
        dsum = x.new_empty((b, conv.steps, K, d), dtype=wide)
        dweight = x.new_empty((b * parts, K, d, taps), dtype=torch.float32)
        dbias = None if bias is None else x.new_empty((b * parts, K, d), dtype=torch.float32)
        strides = dict(zip(("grad_b", "grad_s", "grad_k"), grad.stride(), strict=False))
        causal_conv1d_parameters_kernel[grid](
            grad=grad, dsum=dsum, dweight=dweight, dbias=dbias, **strides, **arguments
        )
        if conv.order is None:
            merged = kx < K
            start = torch.arange(0, L * K + 1, K if merged else 1, device=x.device, dtype=torch.int32)
            index = torch.arange(L * K, device=x.device, dtype=torch.int32)
        else:
            start, index = table_visits(conv.order, L, kx < K)
        dx = x.new_empty((b, L, kx, d))
        bins = start.shape[0] - 1
        block = _block(d, 256)
        causal_conv1d_input_kernel[(bins, b, -(-d // block))](
            dsum,
            weight,
            start,
            index,
            dx,
            arguments["weight_k"],
            K,
            conv.steps,
            bins,
            CHANNELS=d,
            TAPS=taps,
            BLOCK=block,
            num_warps=1,
        )
        return dx, _sum_routes(dweight, weight), None if bias is None or dbias is None else _sum_routes(dbias, bias)


def _arguments(conv: Conv, most: int) -> tuple[Tensor, dict, tuple[int, int]]:
    """x with neighbouring channels; what the first two kernels share; their grid, of at most `most` channels each."""
    x = conv.x if conv.x.stride(-1) == 1 else conv.x.contiguous()
    weight, bias = conv.weight.contiguous(), None if conv.bias is None else conv.bias.contiguous()
    use: TableUse | None = None if conv.order is None else table_use(conv.order, x.shape[1])
    d = x.shape[3]
    block = _block(d, most)
    arguments = dict(
        x=x,
        weight=weight,
        bias=bias,
        order=None if use is None else use.entries,
        x_b=x.stride(0),
        x_s=x.stride(1),
        x_k=x.stride(2) if x.shape[2] > 1 else 0,
        weight_k=weight.stride(0) if weight.shape[0] > 1 else 0,
        bias_k=0 if bias is None or bias.shape[0] == 1 else bias.stride(0),
        routes=conv.routes,
        steps=conv.steps,
        CHANNELS=d,
        TAPS=weight.shape[2],
        AHEAD=AHEAD,
        SILU=conv.silu,
        ROWS=ROWS,
        BLOCK=block,
        num_warps=4,
    )
    return x, arguments, (x.shape[0] * conv.routes * -(-conv.steps // ROWS), -(-d // block))


def _block(channels: int, most: int) -> int:
    return min(most, max(16, 1 << (channels - 1).bit_length()))


def _sum_routes(shares: Tensor, like: Tensor) -> Tensor:
    """shares (parts, K, ...) as the parameter, (1 or K, ...)."""
    total = shares.sum(0) if like.shape[0] == shares.shape[1] else shares.sum((0, 1))[None]
    return total.to(like.dtype)
