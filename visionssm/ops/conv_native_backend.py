"""The causal convolution in the native library, given what conv.h lays out."""

import torch
from torch import Tensor

from .conv_backend import Conv, ConvBackend
from .native.calling import DTYPES, call, contiguous_channels, members, parameter, pointer, strides, unavailable


def forward(conv: Conv) -> Tensor:
    """As `ConvBackend` says."""
    x = conv.x
    out = x.new_empty((x.shape[0], conv.steps, conv.routes, x.shape[3]), dtype=torch.float32)
    arguments, kept = _conv(conv, out)
    call("conv", arguments)
    del kept
    return out.to(x.dtype)


def backward(grad: Tensor, conv: Conv) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `ConvBackend` says."""
    arguments, kept = _conv(conv, None)
    grad = contiguous_channels(grad)
    dx, dweight = (t.new_empty(t.shape, dtype=torch.float32) for t in (conv.x, conv.weight))
    dbias = None if conv.bias is None else conv.bias.new_empty(conv.bias.shape, dtype=torch.float32)
    routes = (conv.x.shape[2], conv.weight.shape[0], 0 if conv.bias is None else conv.bias.shape[0])
    call("conv_backward", arguments, members(*_rows(grad), *map(pointer, (dx, dweight, dbias)), *routes))
    del kept
    return (
        dx.to(conv.x.dtype),
        dweight.to(conv.weight.dtype),
        None if conv.bias is None or dbias is None else dbias.to(conv.bias.dtype),
    )


BACKEND = ConvBackend("native", ("cpu",), unavailable, forward, backward)


def _conv(conv: Conv, out: Tensor | None):
    """A `struct conv`, and the tensors that must live as long as it is used."""
    x, order = contiguous_channels(conv.x), conv.order
    weight, bias = conv.weight.float(), None if conv.bias is None else conv.bias.float()
    order = None if order is None else order.contiguous()
    values = members(
        x.shape[0],
        x.shape[1],
        conv.steps,
        conv.routes,
        x.shape[3],
        weight.shape[2],
        conv.silu,
        order is not None and order.dtype == torch.int64,
        pointer(order),
        *_rows(x),
        *parameter(weight),
        *parameter(bias),
        pointer(out),
        torch.get_num_threads(),
    )
    return values, (x, order, weight, bias)


def _rows(x: Tensor) -> tuple[int, ...]:
    """A `struct rows`."""
    return x.data_ptr(), *strides(x, 2)[:3], DTYPES[x.dtype]
