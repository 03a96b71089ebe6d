"""Depthwise causal convolution along scan orders."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .conv_backend import Conv
from .conv_backends import Convolve, choose_conv_backend
from .tables import check_table


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    order: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """Depthwise causal convolution along each route's steps (Mamba, arXiv:2312.00752, figure 3; Vim's two directions).

    out[t] = bias + sum_j weight[..., W - 1 - j] * x[order[t - j]], with zeros before the start and at entries of -1.

    On a GPU one Triton kernel does it, on a CPU the native library where it was compiled; VISIONSSM_BACKEND=portable
    leaves it to PyTorch's operators, as compiled models do.

    Args:
        x: Tokens, (b, L, d), or (b, L, k, d) with one input per route; float32, bfloat16, float16 or float64. In the
            lower precisions products and sums are taken in float32 and the result is rounded once.
        weight: Taps, (d, W), or (k, d, W) per route.
        bias: (d,) or (k, d).
        order: Integer table (k, T): the token read at each step, -1 for a zero token; None scans tokens as stored.
        activation: "silu" applies the SiLU to the sum before it is rounded; None leaves it.

    Returns:
        Stored by step: (b, T, k, d) if `order` is given or `x` or `weight` has a route axis, else (b, L, d); x's dtype.

    Raises:
        ValueError: shapes or routes disagree, the table has an entry out of range, or the activation is unknown.
        TypeError: the table is not an integer tensor.
    """
    if has_torch_function_variadic(x, weight):
        return handle_torch_function(
            causal_conv1d, (x, weight), x, weight, bias=bias, order=order, activation=activation
        )
    if activation not in (None, "silu"):
        raise ValueError(f"unknown activation {activation!r}; expected 'silu' or None")
    if x.ndim not in (3, 4) or weight.ndim not in (2, 3):
        raise ValueError(
            f"x must be (b, L, [k,] d) and weight ([k,] d, W), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if weight.shape[-2] != x.shape[-1]:
        raise ValueError(f"weight has {weight.shape[-2]} channels but x has {x.shape[-1]}")
    if bias is not None and bias.shape[-1] != x.shape[-1]:
        raise ValueError(f"bias has {bias.shape[-1]} channels but x has {x.shape[-1]}")
    plain = order is None and x.ndim == 3 and weight.ndim == 2
    x = x.unsqueeze(2) if x.ndim == 3 else x
    weight = weight if weight.ndim == 3 else weight.unsqueeze(0)
    bias = bias if bias is None or bias.ndim == 2 else bias.unsqueeze(0)
    sizes = {"x": x.shape[2], "weight": weight.shape[0]}
    if order is not None:
        sizes["order"] = order.shape[0]
    if bias is not None:
        sizes["bias"] = bias.shape[0]
    routes = max(sizes.values())
    if any(s not in (1, routes) for s in sizes.values()) or sizes.get("order", routes) != routes:
        raise ValueError(f"the numbers of routes disagree: {', '.join(f'{n} {s}' for n, s in sizes.items())}")
    if order is not None:
        if order.ndim != 2:
            raise ValueError(f"order must be (routes, steps), got shape {tuple(order.shape)}")
        if order.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"order must be int32 or int64, got {order.dtype}")
    conv = Conv(x, weight, bias, order, activation == "silu", routes)
    backend = choose_conv_backend(x)
    if backend is None:
        out = _formula(conv)
    else:
        if order is not None:
            check_table(order, x.shape[1])
        out = Convolve.apply(backend, _formula, *conv)
    return out.squeeze(2) if plain else out


def _formula(conv: Conv) -> Tensor:
    """The definition in PyTorch's operators, (b, T, k, d)."""
    x, weight, bias, order, silu, _ = conv
    if order is not None:
        x = _gather(x, order)
    dtype, x = x.dtype, x if x.dtype == torch.float64 else x.float()
    taps = weight.to(x.dtype).movedim(-1, 0).contiguous()  # contiguous channels: several times faster on a CPU
    out = x * taps[-1] if bias is None else torch.addcmul(bias.to(x.dtype), x, taps[-1])
    # vmap has no rule for the fused operation
    fused = torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()
    for j in range(1, min(len(taps), x.shape[1])):
        # zeros left of the start: only steps from j on see the token j steps back
        if fused:
            out[:, j:].addcmul_(x[:, :-j], taps[-1 - j])
        else:
            out[:, j:].add_(x[:, :-j] * taps[-1 - j])
    return (F.silu(out) if silu else out).to(dtype)


def _gather(x: Tensor, order: Tensor) -> Tensor:
    """x (b, L, 1 or k, d) as scanned, (b, T, k, d); entries of -1 read zeros."""
    if torch.compiler.is_compiling() or order.is_meta:
        padded = True  # a traced program cannot look at the table
    else:
        padded = check_table(order, x.shape[1]).padded
    b, L, kx, d = x.shape
    k, T = order.shape
    index = order.clamp(min=0).T if padded else order.T  # (T, k)
    if kx == 1:
        rows = x.reshape(b, L, d).index_select(1, index.reshape(-1)).view(b, T, k, d)
    else:
        flat = index * k + torch.arange(k, device=order.device, dtype=order.dtype)
        rows = x.reshape(b, L * k, d).index_select(1, flat.reshape(-1)).view(b, T, k, d)
    return rows * (order.T >= 0)[None, :, :, None].to(x.dtype) if padded else rows
