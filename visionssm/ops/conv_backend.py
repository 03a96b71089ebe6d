"""What a backend of the causal convolution is given, and must provide."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Conv(NamedTuple):
    """One checked call: routes have an axis everywhere, of size 1 where they share.

    b batch, L tokens, T scan steps, K routes, d channels, W taps.
    """

    x: Tensor  # (b, L, 1 or K, d)
    weight: Tensor  # (1 or K, d, W)
    bias: Tensor | None  # (1 or K, d)
    order: Tensor | None  # (K, T), -1 for a zero token
    silu: bool  # of the sum
    routes: int  # K

    @property
    def steps(self) -> int:
        return self.x.shape[1] if self.order is None else self.order.shape[1]


class ConvBackend(NamedTuple):
    """An implementation beside the formula of PyTorch's operators, which is there where none of them is taken.

    Its functions are ordinary tensor code without autograd, called on real tensors with batches that are not empty.

    Attributes:
        name: As VISIONSSM_BACKEND calls it.
        devices: Types of device on which it is taken unasked where it can run.
        unavailable: Why it cannot run on a type of device with inputs of a dtype, or None if it can.
        forward: From a call the output as scanned, (b, T, K, d), in x's dtype.
        backward: From the output's gradient and the call, the gradients of x, weight and bias (None without one).
    """

    name: str
    devices: tuple[str, ...]
    unavailable: Callable[[str, torch.dtype], str | None]
    forward: Callable[[Conv], Tensor]
    backward: Callable[[Tensor, Conv], tuple[Tensor, Tensor, Tensor | None]]
