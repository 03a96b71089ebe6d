"""A linear layer whose output is split: two contiguous results instead of one that a convolution would have to copy."""

import torch.nn.functional as F
from torch import Tensor, nn

from .._timm_compat import register_notrace_function


@register_notrace_function  # fx cannot follow a decision on a module
def split_linear(linear: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of linear(x) (..., 2 d), each (..., d).

    A plain `nn.Linear` to which nothing is attached is read as two products; anything else (hooks, adapters,
    parametrisations, quantised layers) is called.
    """
    if type(linear) is not nn.Linear or _attached(linear):
        first, second = linear(x).chunk(2, dim=-1)
        return first, second
    weights = linear.weight.chunk(2)
    biases = (None, None) if linear.bias is None else linear.bias.chunk(2)
    return F.linear(x, weights[0], biases[0]), F.linear(x, weights[1], biases[1])


def _attached(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks) or "forward" in module.__dict__
