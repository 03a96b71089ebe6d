"""Leaving out tokens between blocks, and scans that keep their distance (ToP-ViM, arXiv:2409.18962).

The formulas follow the paper; the released code aligns nothing, and its scores belong to the tokens mirrored.
"""

import math

import torch
from torch import Tensor

from ..ops import selective_scan


def token_scores(y: Tensor, clipped: bool = True) -> Tensor:
    """Importance of tokens: the sum over channels of what a mixer's scan gives.

    Args:
        y: Output of the scan, gated, before the last projection (b, L, d).
        clipped: Sum what is positive (the paper), or everything (the released code).

    Returns:
        (b, L).
    """
    return (y.clamp(min=0) if clipped else y).sum(-1)


def select_tokens(score: Tensor, share: float, class_token: Tensor | None = None) -> Tensor:
    """The tokens that stay, in their order: those with the highest scores, the first among equals.

    Args:
        score: Importance of tokens (b, L).
        share: Of the patches that stay, rounded up; above 0, at most 1.
        class_token: Place of the class token in each image (b), int64; it always stays and is no patch.

    Returns:
        Places of what stays (b, L'), int64, ascending.

    Raises:
        ValueError: a share out of range, scores of another shape or a place outside the sequence.
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"the share of tokens that stay must be above 0 and at most 1, got {share}")
    if score.ndim != 2:
        raise ValueError(f"scores must be (b, L), got {tuple(score.shape)}")
    count = score.shape[1]
    if class_token is not None:
        if class_token.shape != score.shape[:1] or not bool(((class_token >= 0) & (class_token < count)).all()):
            raise ValueError(f"class_token must hold a place from 0 to {count - 1} for each of {len(score)} images")
        score = score.scatter(1, class_token.unsqueeze(1), math.inf)
    extra = 0 if class_token is None else 1
    return best_tokens(score, kept_count(count - extra, share) + extra)


def kept_count(patches: int, share: float) -> int:
    """How many of so many patches stay, rounded up."""
    return math.ceil(round(patches * share, 9))  # 10 * 0.7 is above 7


def best_tokens(score: Tensor, count: int) -> Tensor:
    """Places of the `count` highest scores (b, L), the first among equals, ascending; int64 (b, count)."""
    return score.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def skipped_tokens(places: Tensor, length: int, reverse: bool = False) -> Tensor:
    """How many tokens are missing before each that stayed.

    Args:
        places: Their places in the whole sequence (b, L'), ascending.
        length: Of the whole sequence.
        reverse: Before in the order from the end.

    Returns:
        (b, L'), int64, in the order of `places`.
    """
    if reverse:
        return skipped_tokens(length - 1 - places.flip(1), length).flip(1)
    return places.diff(dim=1, prepend=places.new_full((len(places), 1), -1)) - 1


def aligned_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    skipped: Tensor,
    D: Tensor | None = None,
) -> Tensor:
    """Scan kept tokens only, with a state that decays over those left out as if they were there and empty.

    The decay of a kept token covers the gap before it, its input does not:
    h_i = exp((delta_i + skipped_i) A) h_{i-1} + delta_i B_i u_i. Equal to the full scan with u = 0 at the tokens left
    out, read at the kept ones. A token without features counts as softplus of the step size's bias: give
    `skipped_tokens` times that.

    Args:
        u: Kept tokens (b, L, d).
        delta: Their step sizes, after softplus (b, L, d).
        A: Decay rates, negative (d, N).
        B: Input projection (b, L, N).
        C: Output projection (b, L, N).
        skipped: Sum of the step sizes, after softplus, of what was left out since the kept token before (b, L, d).
        D: Skip weight (d), or None.

    Returns:
        (b, L, d).

    Raises:
        ValueError: shapes do not agree.
    """
    if not u.shape == delta.shape == skipped.shape or u.ndim != 3:
        raise ValueError(
            "u, delta and skipped must have one shape (b, L, d), got "
            f"{tuple(u.shape)}, {tuple(delta.shape)} and {tuple(skipped.shape)}"
        )
    total = delta + skipped
    share = delta / total.clamp(min=torch.finfo(total.dtype).tiny)
    y = selective_scan(u * share, total, A, B, C, delta_softplus=False)
    return y if D is None else y + D * u


def kept_along(order: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """How routes read the tokens that stayed.

    Args:
        order: Scan table of the whole sequence (k, L), in which every route reads each token once.
        places: Tokens that stayed, by their places in the whole sequence (b, L'), ascending.

    Returns:
        For each step of a route the token it reads, as its number among those that stayed, int64 (b, k, L'); and how
        many tokens it would have read since the step before, int64 (b, k, L').
    """
    steps = order.long().argsort(1)  # of each token
    reached = steps.unsqueeze(0).expand(len(places), -1, -1).gather(2, places.unsqueeze(1).expand(-1, len(order), -1))
    reached, tokens = reached.sort(dim=2)
    return tokens, reached.diff(dim=2, prepend=reached.new_full((*reached.shape[:2], 1), -1)) - 1
