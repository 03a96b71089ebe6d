"""Tokens in the order of a learned importance before a scan (token dynamics, arXiv:2410.03292)."""

import torch
from torch import Tensor, nn

_LONGEST = 4096  # the soft order of more tokens is a matrix that no memory holds


def sort_matrix(score: Tensor, tau: float = 1.0, power: float = 1.0) -> Tensor:
    """The soft order of tokens: row i picks the i-th least important one.

    P[i, l] = softmax over l of -|score_l - sorted_i|^power / tau. Sorted values carry a gradient, like the scores.

    Args:
        score: Importance of each token (b, L).
        tau: Temperature; the smaller, the harder.
        power: Of the distance.

    Returns:
        (b, L, L), rows sum to 1.

    Raises:
        ValueError: a temperature or power that is not positive, no matrix of scores, or too many tokens.
    """
    if tau <= 0 or power <= 0:
        raise ValueError(f"tau and power must be positive, got {tau} and {power}")
    if score.ndim != 2 or score.shape[1] > _LONGEST:
        raise ValueError(
            f"scores must be (b, L) with at most {_LONGEST} tokens, got {tuple(score.shape)}; hard order needs no limit"
        )
    ranked = score.sort(dim=1, stable=True).values
    distance = (score.unsqueeze(1) - ranked.unsqueeze(2)).abs()
    return (-(distance if power == 1 else distance**power) / tau).softmax(-1)


class TokenReorder(nn.Module):
    """Puts tokens into the order of a learned importance, least important first.

    A soft order mixes tokens by `sort_matrix`. A hard one is a permutation; in training its gradient is the soft one's.

    Args:
        dim: Channels d of the step sizes that the importance is read from.
        tau: Temperature of the soft order.
        power: Of the distance in it.
        hard: Permute instead of mixing.
    """

    def __init__(self, dim: int, tau: float = 1.0, power: float = 1.0, hard: bool = False, device=None, dtype=None):
        super().__init__()
        self.tau, self.power, self.hard = tau, power, hard
        self.importance = nn.Linear(dim, 1, bias=False, device=device, dtype=dtype)

    def score(self, delta: Tensor) -> Tensor:
        """Importance (b, L) of tokens by their raw step sizes (b, L, d)."""
        return self.importance(delta).squeeze(-1)

    def forward(self, u: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Reorder tokens.

        Args:
            u: Tokens (b, L, channels).
            delta: Their raw step sizes (b, L, d), softplus not applied.

        Returns:
            The tokens in their new order, and that order (b, L), int64: the token that counts most at each place.
        """
        score = self.score(delta)
        order = score.argsort(dim=1, stable=True)
        if self.hard and not (torch.is_grad_enabled() and score.requires_grad):
            return u.gather(1, order.unsqueeze(-1).expand_as(u)), order
        matrix = sort_matrix(score, self.tau, self.power)
        if self.hard:
            permutation = torch.zeros_like(matrix).scatter(2, order.unsqueeze(-1), 1.0)
            matrix = permutation + matrix - matrix.detach()
        return matrix @ u, order


def restore_order(y: Tensor, order: Tensor) -> Tensor:
    """Put what a reordered scan gave (b, L, d) back to the tokens' places, by the order (b, L) of `TokenReorder`."""
    return y.gather(1, order.argsort(dim=1).unsqueeze(-1).expand_as(y))
