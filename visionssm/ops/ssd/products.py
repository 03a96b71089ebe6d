"""State-space duality as matrix products: plain PyTorch, so gradients, compilers, exporters and counters see through.

A scan whose decay is one number per head and step is a masked matrix of products between tokens (Mamba-2,
arXiv:2405.21060, section 3): without the mask it is one state for all tokens, with it the tokens are cut into chunks.
"""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from .contract import Ssd, check_shape, check_tensors, checked, grouped, product_dtype


def causal_ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    chunk: int = 64,
) -> Tensor:
    """Scan along the tokens with one decay per head, in chunks (Mamba-2, arXiv:2405.21060, section 6).

    For batch b, head h of p channels and token t, with a state S of n x p:

        delta = softplus(delta_raw + delta_bias)
        S_t = exp(delta_t A) S_{t-1} + delta_t B_t x_t^T
        y_t = C_t S_t + D x_t

    The step sizes, decays and sums over chunks are float32 (float64 for float64 inputs). Products of tokens are in the
    dtype of x, B and C; of bfloat16 each product is rounded to bfloat16, of float16 they are float32, since states
    outgrow float16. Autocast changes nothing inside, except that torch.compile runs the backward pass of a call under
    autocast in autocast's dtype. For q tokens in a chunk a call costs about
    b L (q (g n + h p) + 2 h n p) multiply-adds, which PyTorch's counters see.

    Args:
        x: Input, (b, L, h, p); float32, bfloat16, float16 or float64.
        delta: Raw step size, (b, L, h).
        A: Decay rate, negative, (h,); float32 (float64 with float64 inputs).
        B: Input projection, (b, L, [g,] n), shared by the h / g heads of each group, which follow each other.
        C: Output projection, as B.
        D: Skip weight, (h,), dtype of A.
        delta_bias: Added to delta before the softplus, (h,), dtype of A.
        chunk: Tokens of a chunk; the result does not depend on it.

    Returns:
        (b, L, h, p), dtype of x.

    Raises:
        ValueError: a shape, a device or `chunk` is wrong.
        TypeError: a dtype is wrong.
    """
    tensors = (x, delta, A, B, C, D, delta_bias)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(causal_ssd, tensors, *tensors, chunk=chunk)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    ssd = checked(*tensors)
    with _without_autocast(x.device):
        return _with_skip(_chunked(ssd, chunk), ssd)


def noncausal_ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
) -> Tensor:
    """Every token reads the same state, to which all tokens add (VSSD's NC-SSD, arXiv:2407.18559, section 3.2).

        delta = softplus(delta_raw + delta_bias)
        S = sum_t -delta_t A B_t x_t^T
        y_t = C_t S + D x_t

    There is no order of tokens and no division by their number. A call costs 2 b L h n p multiply-adds. Arguments,
    dtypes and errors are those of `causal_ssd`.

    Returns:
        (b, L, h, p), dtype of x.
    """
    tensors = (x, delta, A, B, C, D, delta_bias)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(noncausal_ssd, tensors, *tensors)
    ssd = checked(*tensors)
    with _without_autocast(x.device):
        state = _weighted_state(ssd.x, ssd.B, -ssd.step_size() * A)
        return _with_skip(_read_state(state, ssd.C), ssd)


def quasi_separable_ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    diagonal: Tensor,
    delta_bias: Tensor | None = None,
    *,
    chunk: int = 64,
) -> Tensor:
    """A scan forwards and one backwards, each shifted by a token, and a diagonal of its own (Hydra, arXiv:2407.09941).

        y_t = f_{t-1} + g_{t+1} + diagonal_t x_t

    with f the `causal_ssd` of the first direction's delta, B and C, and g that of the second's from the last token to
    the first; both are zero beyond the ends. So the two triangles of the matrix that mixes tokens and its diagonal are
    independent of each other, a quasi-separable matrix (section 3 there). Dtypes and cost are those of two calls.

    Args:
        x: Input, (b, L, h, p), shared by the directions.
        delta: Raw step sizes, (b, L, 2, h): forwards, backwards.
        A: Decay rate of both directions, negative, (h,).
        B: Input projections, (b, L, 2, [g,] n).
        C: Output projections, as B.
        diagonal: (h,) in the dtype of A, or (b, L, h) in that of x.
        delta_bias: Added to both step sizes before the softplus, (h,).
        chunk: Tokens of a chunk; the result does not depend on it.

    Returns:
        (b, L, h, p), dtype of x.

    Raises:
        ValueError: a shape, a device or `chunk` is wrong.
        TypeError: a dtype is wrong.
    """
    tensors = (x, delta, A, B, C, diagonal, delta_bias)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(quasi_separable_ssd, tensors, *tensors, chunk=chunk)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1 token, got {chunk}")
    named = dict(x=x, delta=delta, A=A, B=B, C=C, diagonal=diagonal, delta_bias=delta_bias)
    per_token = isinstance(diagonal, Tensor) and diagonal.ndim == 3
    sequences = ("x", "delta", "B", "C") + ("diagonal",) * per_token
    check_tensors(named, optional=("delta_bias",), sequences=sequences)
    for name, t in (("delta", delta), ("B", B), ("C", C)):
        if t.ndim < 4 or t.shape[2] != 2:
            raise ValueError(f"{name} must have the 2 directions as its third axis, got shape {tuple(t.shape)}")
    forwards, backwards = (
        checked(x, delta[:, :, way], A, B[:, :, way], C[:, :, way], None, delta_bias) for way in (0, 1)
    )
    b, length, h, _ = x.shape
    if not per_token:
        check_shape("diagonal", diagonal, (h,), "(heads) or (batch, tokens, heads)")
    else:
        check_shape("diagonal", diagonal, (b, length, h), "(heads) or (batch, tokens, heads)")
    both = Ssd(
        torch.cat([x, x.flip(1)]),
        torch.cat([forwards.delta, backwards.delta.flip(1)]),
        A,
        torch.cat([forwards.B, backwards.B.flip(1)]),
        torch.cat([forwards.C, backwards.C.flip(1)]),
        None,
        delta_bias,
    )
    with _without_autocast(x.device):
        mixed = _chunked(both, chunk)
        before, after = mixed[:b], mixed[b:]  # (chunk would bind exporters to one batch size)
        zero = before.new_zeros(b, 1, *before.shape[2:])
        y = torch.cat([zero, before[:, :-1]], 1) + torch.cat([after[:, :-1].flip(1), zero], 1)
        return (y + diagonal.to(y.dtype)[..., None] * x.to(y.dtype)).to(x.dtype)


def weighted_state(x: Tensor, B: Tensor, weight: Tensor | None = None) -> Tensor:
    """One state for all tokens, S = sum_t weight_t B_t x_t^T, the half of `noncausal_ssd` before C.

    With `read_state` it is also the hidden-state mixer of EfficientViM (HSM-SSD, arXiv:2411.15241, section 3.2), which
    weighs B by a softmax over the tokens and mixes the channels of the state before it is read.

    Args:
        x: Input, (b, L, h, p); float32, bfloat16, float16 or float64.
        B: Input projection, (b, L, [g,] n).
        weight: (b, L, h); None weighs all tokens by 1.

    Returns:
        (b, h, n, p), in the dtype of the products, see `causal_ssd`.

    Raises:
        ValueError: a shape or a device is wrong.
        TypeError: a dtype is wrong.
    """
    tensors = (x, B, weight)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(weighted_state, tensors, *tensors)
    check_tensors(dict(x=x, B=B, weight=weight), optional=("weight",), sequences=("x", "B", "weight"))
    if x.ndim != 4:
        raise ValueError(f"x must be (batch, tokens, heads, channels of a head), got shape {tuple(x.shape)}")
    B = grouped("B", B, *x.shape[:3])
    if weight is not None:
        check_shape("weight", weight, tuple(x.shape[:3]), "(batch, tokens, heads)")
    with _without_autocast(x.device):
        return _weighted_state(x, B, weight).permute(0, 1, 3, 2, 4).flatten(1, 2)


def read_state(state: Tensor, C: Tensor) -> Tensor:
    """What every token reads from one state: y_t = C_t S.

    Args:
        state: (b, h, n, p), see `weighted_state`.
        C: Output projection, (b, L, [g,] n).

    Returns:
        (b, L, h, p), dtype of C.

    Raises:
        ValueError: a shape or a device is wrong.
        TypeError: a dtype is wrong.
    """
    if has_torch_function_variadic(state, C):
        return handle_torch_function(read_state, (state, C), state, C)
    check_tensors(dict(state=state, C=C), optional=(), sequences=("state", "C"))
    if state.ndim != 4 or C.ndim not in (3, 4):
        raise ValueError(
            f"state must be (batch, heads, states, channels) and C (batch, tokens, [groups,] states), got "
            f"{tuple(state.shape)} and {tuple(C.shape)}"
        )
    b, h, n, p = state.shape
    C = grouped("C", C, b, C.shape[1], h)
    if C.shape[3] != n:
        raise ValueError(f"C reads {C.shape[3]} states but the state has {n}")
    g = C.shape[2]
    with _without_autocast(C.device):
        return _read_state(state.reshape(b, g, h // g, n, p).transpose(2, 3), C).to(C.dtype)


def _weighted_state(x: Tensor, B: Tensor, weight: Tensor | None) -> Tensor:
    """(b, g, n, h / g, p): one product over the tokens for each group."""
    b, length, h, p = x.shape
    g, n, dtype = *B.shape[2:], product_dtype(x, B)
    if weight is not None:
        x = x * weight[..., None]
    x = x.to(dtype).reshape(b, length, g, h // g * p)
    return torch.einsum("blgn,blgd->bgnd", B.to(dtype), x).view(b, g, n, h // g, p)


def _read_state(state: Tensor, C: Tensor) -> Tensor:
    """(b, L, h, p) from a state (b, g, n, h / g, p)."""
    b, g, _, r, p = state.shape
    dtype = product_dtype(state, C)
    y = torch.einsum("blgn,bgnd->blgd", C.to(dtype), state.flatten(3).to(dtype))
    return y.reshape(b, C.shape[1], g * r, p)


def _with_skip(y: Tensor, ssd: Ssd) -> Tensor:
    if ssd.D is None:
        return y.to(ssd.x.dtype)
    return (y + ssd.D[:, None] * ssd.x).to(ssd.x.dtype)


def _chunked(ssd: Ssd, chunk: int) -> Tensor:
    """y_t = C_t S_t, (b, L, h, p), in the state's dtype.

    Inside a chunk every token reads those before it through the masked matrix of products; what lies before the chunk
    it reads from the state with which the chunk starts, and those states follow from the chunks' own by a second,
    smaller masked matrix.
    """
    b, length, h, p = ssd.x.shape
    g, n = ssd.B.shape[2:]
    dtype = product_dtype(ssd.x, ssd.B, ssd.C)
    step = ssd.step_size()
    q = chunk if chunk < length else length  # (with min, compilers of dynamic shapes lose themselves)
    chunks = (length + q - 1) // q
    pad = chunks * q - length

    def cut(t: Tensor, *axes: int) -> Tensor:
        if pad:  # with zeros at the end: no input, and no decay
            t = F.pad(t, (0, 0) * (t.ndim - 2) + (0, pad))
        return t.reshape(b, chunks, q, *axes)

    x = cut(ssd.x, g, h // g, p)
    B, C = (cut(t.to(dtype), g, n) for t in (ssd.B, ssd.C))
    weight = cut(step, g, h // g)  # (b, c, q, g, r)
    log_decay = cut(step * ssd.A, g, h // g).permute(0, 1, 3, 4, 2)  # (b, c, g, r, q)

    between = torch.exp(_sums_between(log_decay))  # (b, c, g, r, q, q)
    products = torch.einsum("bcqgn,bcsgn->bcgqs", C, B)
    mixing = products[:, :, :, None] * between * weight.permute(0, 1, 3, 4, 2)[..., None, :]
    y = torch.einsum("bcgrqs,bcsgrp->bcqgrp", mixing.to(dtype), x.to(dtype)).to(between.dtype)
    if chunks > 1:
        # (the last chunk's own state is never read)
        left = between[:, :-1, :, :, -1].permute(0, 1, 4, 2, 3) * weight[:, :-1]  # of each token at its chunk's end
        inputs = (x[:, :-1] * left[..., None]).to(dtype)
        states = torch.einsum("bcsgn,bcsgrp->bcgrnp", B[:, :-1], inputs).to(between.dtype)
        carried = torch.exp(_sums_between(log_decay[:, :-1].sum(-1).movedim(1, -1)))  # (b, g, r, c - 1, c - 1)
        starts = torch.einsum("bgrij,bjgrnp->bigrnp", carried, states)  # of the chunks from the second on
        read = torch.einsum("bcqgn,bcgrnp->bcqgrp", C[:, 1:], starts.to(dtype)).to(between.dtype)
        since_start = torch.exp(log_decay[:, 1:].cumsum(-1)).permute(0, 1, 4, 2, 3)
        y = torch.cat([y[:, :1], y[:, 1:] + read * since_start[..., None]], 1)
    return y.reshape(b, chunks * q, h, p)[:, :length]


def _sums_between(x: Tensor) -> Tensor:
    """Sums of x[..., j + 1 : i + 1] at [..., i, j], and -inf above the diagonal.

    Each is summed by itself: differences of cumulative sums would cancel where decays are strong.
    """
    length = x.shape[-1]
    lower = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    sums = x[..., None].expand(*x.shape, length).masked_fill(~lower.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~lower, -torch.inf)


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
