"""Filling hidden tokens between visible ones along a state space (MambaMIM's TOKI, arXiv:2408.08070)."""

import torch
from torch import Tensor, nn


def interpolate_tokens(x: Tensor, visible: Tensor, transition: Tensor) -> Tensor:
    """Interpolate along the sequence between its visible tokens, as a linear state space would go from one to the next.

    Anchors are the visible positions, the first and the last. From an anchor a to the next one b, g steps away, the
    state begins with A^(g-1) x_a, and step m adds A^(g-1-m) ((1 - m / (g - 1)) x_a + m / (g - 1) x_b); the last token
    is A x. The original reads the result with channels and positions mixed up; here they are as meant.

    Args:
        x: Tokens (b, L, d); at a hidden first or last position, what stands for it.
        visible: Which tokens are visible (b, L), bool; differs from image to image as it likes.
        transition: A (d, d), acts as A @ token.

    Returns:
        Interpolated tokens (b, L, d), at visible positions too.

    Raises:
        ValueError: shapes do not agree.
    """
    batch, length, dim = x.shape if x.ndim == 3 else (0, 0, 0)
    if not length or visible.shape != (batch, length) or transition.shape != (dim, dim):
        raise ValueError(
            "x (b, L, d), visible (b, L) and transition (d, d) must agree, got "
            f"{tuple(x.shape)}, {tuple(visible.shape)} and {tuple(transition.shape)}"
        )
    place = torch.arange(length, device=x.device)
    anchors = visible.bool() | (place == 0) | (place == length - 1)
    begin = torch.where(anchors, place, 0).cummax(1).values
    after = torch.where(anchors, place, length).flip(1).cummin(1).values.flip(1)
    end = torch.cat([after[:, 1:], after[:, -1:]], 1)  # the next anchor behind each position
    gap = (end - begin).clamp(min=1)
    step = place - begin
    weight = (step / (gap - 1).clamp(min=1)).to(x.dtype).unsqueeze(-1)
    index = lambda at: at.unsqueeze(-1).expand(-1, -1, dim)  # noqa: E731
    value = (1 - weight) * x.gather(1, index(begin)) + weight * x.gather(1, index(end))
    exponent = gap - 1 - step

    # A^exponent for each position, by the exponent's binary digits: no powers are stored
    power, term = transition, value
    for bit in range(max(length - 1, 1).bit_length()):
        chosen = ((exponent >> bit) & 1).bool().unsqueeze(-1)
        term = torch.where(chosen, term @ power.T, term)
        power = power @ power
    total = term.cumsum(1)
    before = torch.cat([torch.zeros_like(total[:, :1]), total], 1).gather(1, index(begin))
    out = total - before
    last = (x[:, -1:] @ transition.T).expand_as(x[:, -1:])
    return torch.cat([out[:, :-1], last], 1)


class TokenInterpolation(nn.Module):
    """Fills the hidden tokens of a sequence by `interpolate_tokens`; visible ones stay.

    Args:
        dim: Channels d.
    """

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        self.transition = nn.Parameter(torch.zeros(dim, dim, device=device, dtype=dtype))
        self.mask_token = nn.Parameter(torch.empty(dim, device=device, dtype=dtype))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """Tokens (b, L, d), of which those that are not `visible` (b, L) are not read, to (b, L, d)."""
        kept = visible.bool().unsqueeze(-1)
        x = torch.where(kept, x, self.mask_token)
        return torch.where(kept, x, interpolate_tokens(x, visible, self.transition))
