"""The oracles: the recurrences written out token by token, differentiable by autograd, in float32 or float64."""

import torch
from torch import Tensor

from .contract import checked


def causal_ssd_reference(x, delta, A, B, C, D=None, delta_bias=None) -> Tensor:
    """S_t = exp(delta_t A) S_{t-1} + delta_t B_t x_t^T;  y_t = C_t S_t + D x_t. Arguments as of `causal_ssd`."""
    ssd = checked(x, delta, A, B, C, D, delta_bias)
    delta, dtype = ssd.step_size(), ssd.state_dtype
    x, B, C = (t.to(dtype) for t in (ssd.x, *_per_head(ssd)))
    state = x.new_zeros(x.shape[0], *B.shape[2:], x.shape[3])  # (b, h, n, p)
    steps = []
    for t in range(x.shape[1]):
        decay = torch.exp(delta[:, t] * A)[:, :, None, None]
        state = decay * state + delta[:, t, :, None, None] * B[:, t, :, :, None] * x[:, t, :, None, :]
        steps.append((C[:, t, :, :, None] * state).sum(2))
    y = torch.stack(steps, 1)
    return (y if D is None else y + D[:, None] * x).to(ssd.x.dtype)


def noncausal_ssd_reference(x, delta, A, B, C, D=None, delta_bias=None) -> Tensor:
    """S = sum_t -delta_t A B_t x_t^T;  y_t = C_t S + D x_t. Arguments as of `noncausal_ssd`."""
    ssd = checked(x, delta, A, B, C, D, delta_bias)
    weight, dtype = -ssd.step_size() * A, ssd.state_dtype
    x, B, C = (t.to(dtype) for t in (ssd.x, *_per_head(ssd)))
    state = x.new_zeros(x.shape[0], *B.shape[2:], x.shape[3])
    for t in range(x.shape[1]):
        state = state + weight[:, t, :, None, None] * B[:, t, :, :, None] * x[:, t, :, None, :]
    y = torch.stack([(C[:, t, :, :, None] * state).sum(2) for t in range(x.shape[1])], 1)
    return (y if D is None else y + D[:, None] * x).to(ssd.x.dtype)


def quasi_separable_ssd_reference(x, delta, A, B, C, diagonal, delta_bias=None) -> Tensor:
    """The matrix of every head, entry by entry. Arguments as of `quasi_separable_ssd`.

    M_ij = C_{i-1} . B_j delta_j exp(A sum_{s=j+1}^{i-1} delta_s) below the diagonal with the first direction's tensors,
    mirrored above it with the second's, and `diagonal` on it.
    """
    length, directions = x.shape[1], []
    for way in range(2):
        directions.append(checked(x, delta[:, :, way], A, B[:, :, way], C[:, :, way], None, delta_bias))
    dtype = directions[0].state_dtype
    rows = []
    for i in range(length):
        row = []
        for j in range(length):
            if i == j:
                row.append(
                    diagonal[:, i].to(dtype) if diagonal.ndim == 3 else diagonal.to(dtype).expand(x.shape[0], -1)
                )
                continue
            ssd = directions[0 if j < i else 1]
            step, (b_, c_) = ssd.step_size(), _per_head(ssd)
            read = i - 1 if j < i else i + 1
            between = step[:, j + 1 : i] if j < i else step[:, i + 1 : j]
            dot = (c_[:, read].to(dtype) * b_[:, j].to(dtype)).sum(-1)
            row.append(dot * step[:, j] * torch.exp(A * between.sum(1)))
        rows.append(torch.stack(row, -1))
    matrix = torch.stack(rows, -2)  # (b, h, L, L)
    return torch.einsum("bhij,bjhp->bihp", matrix, x.to(dtype)).to(x.dtype)


def _per_head(ssd) -> tuple[Tensor, Tensor]:
    """B and C repeated for the heads of each group, (b, L, h, n)."""
    repeats = ssd.x.shape[2] // ssd.B.shape[2]
    return ssd.B.repeat_interleave(repeats, 2), ssd.C.repeat_interleave(repeats, 2)
