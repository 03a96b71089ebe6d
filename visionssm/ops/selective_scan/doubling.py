"""The scan as a short program without loops, for exporters that know no custom operator."""

import torch.nn.functional as F
from torch import Tensor

from .contract import Scan
from .formula import selective_scan_formula


def selective_scan_doubling(scan: Scan) -> tuple[Tensor, Tensor]:
    """All steps at once, in log2(T) rounds (recursive doubling: Hillis and Steele, CACM 1986).

    Returns as `selective_scan_formula`.
    """
    return selective_scan_formula(scan, _double)


def _double(decay: Tensor, h: Tensor, entry: Tensor | None) -> Tensor:
    """Each round joins every step with the one 1, 2, 4, ... before: (a, x) after (b, y) is (a b, a y + x)."""
    distance, pad = 1, (0, 0) * (h.ndim - 2)
    while distance < h.shape[1]:
        # before the first step the decay is 1 and the input 0
        before = F.pad(h[:, :-distance], (*pad, distance, 0))
        h = decay * before + h
        decay = decay * F.pad(decay[:, :-distance], (*pad, distance, 0), value=1.0)
        distance *= 2
    return h if entry is None else decay * entry.unsqueeze(1) + h
