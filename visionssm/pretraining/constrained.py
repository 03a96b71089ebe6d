"""Projections whose product has eigenvalues of chosen signs (token dynamics, arXiv:2410.03292)."""

import torch
import torch.nn.functional as F
from torch import Tensor

SIGNS = ("positive", "negative", "mixed")
_LEAST = 0.7  # added to a magnitude where all have one sign


def constrained_projection(free: Tensor, rank: int, signs: str) -> Tensor:
    """The weight that projects tokens to step size, B and C, from free parameters, so that B and C fit one another.

    With S_B and S_C the rows for B and C, S_C^T S_B = U^T diag(t) U has N eigenvalues of the signs of t, and no others;
    U is upper triangular with ones on its diagonal. Eigenvalues of one sign decide whether tokens converge.

    Args:
        free: Parameters (..., rank + 2 N, d), rows as those of the weight; d is at least N.
        rank: Rows of the step size, which stay as they are.
        signs: "positive", "negative", or "mixed" for the first half positive.

    Returns:
        The weight, of the same shape.

    Raises:
        ValueError: an unknown choice, or a shape that does not fit.
    """
    if signs not in SIGNS:
        raise ValueError(f"signs must be one of {', '.join(map(repr, SIGNS))}, got {signs!r}")
    states, odd = divmod(free.shape[-2] - rank, 2)
    if odd or states < 1 or free.shape[-1] < states:
        raise ValueError(
            f"free parameters must be (..., rank + 2 N, d) with d at least N, got {tuple(free.shape)} for rank {rank}"
        )
    step, first, second = free.split([rank, states, states], dim=-2)
    upper = first.triu(1) + torch.eye(states, free.shape[-1], dtype=free.dtype, device=free.device)
    size = F.softplus(second[..., :1])
    if signs == "mixed":
        sign = torch.ones(states, 1, dtype=free.dtype, device=free.device)
        sign[states // 2 :] = -1
        size = sign * size
    else:
        size = (size + _LEAST) if signs == "positive" else -(size + _LEAST)
    return torch.cat([step, size * upper, upper], dim=-2)


def interaction_eigenvalues(b_weight: Tensor, c_weight: Tensor) -> Tensor:
    """Eigenvalues of the symmetric part of S_C^T S_B that can differ from 0, found without that matrix.

    Args:
        b_weight: S_B (..., N, d).
        c_weight: S_C (..., N, d).

    Returns:
        2 N real values in the input's dtype, largest first (..., 2 N); where 2 N is above d, some of them are 0.

    Raises:
        ValueError: shapes differ.
    """
    if b_weight.shape != c_weight.shape or b_weight.ndim < 2:
        raise ValueError(f"shapes must be equal and (..., N, d), got {tuple(b_weight.shape)}, {tuple(c_weight.shape)}")
    b, c = b_weight.double(), c_weight.double()
    # (S_C^T S_B + S_B^T S_C) / 2 = X Y with X = [S_C^T, S_B^T] / 2; Y X has the same eigenvalues
    small = torch.cat([torch.cat([b @ c.mT, b @ b.mT], -1), torch.cat([c @ c.mT, c @ b.mT], -1)], -2) / 2
    values = torch.linalg.eigvals(small).real
    return values.sort(descending=True).values.to(b_weight.dtype)
