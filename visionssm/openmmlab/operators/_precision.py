"""Which precision operators compute in."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """Half precision in float32; anything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
