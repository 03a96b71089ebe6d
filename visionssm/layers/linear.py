"""Parts of what a linear layer computes, for less than the whole costs, unless something is attached to the layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from .._timm_compat import register_notrace_function


@register_notrace_function  # fx cannot follow a decision on a module
def split_linear(linear: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of linear(x) (..., 2 d), each (..., d).

    A plain `nn.Linear` to which nothing is attached is read as two products, whose contiguous results no convolution
    has to copy; anything else (hooks, adapters, parametrisations, quantised layers) is called.
    """
    if not _is_plain(linear):
        first, second = linear(x).chunk(2, dim=-1)
        return first, second
    weights = linear.weight.chunk(2)
    biases = (None, None) if linear.bias is None else linear.bias.chunk(2)
    return F.linear(x, weights[0], biases[0]), F.linear(x, weights[1], biases[1])


@register_notrace_function
def linear_without_bias(linear: nn.Module, x: Tensor) -> Tensor:
    """linear(x) less its bias; a layer that something is attached to is called, as in `split_linear`."""
    return F.linear(x, linear.weight) if _is_plain(linear) else linear(x) - linear.bias


def _is_plain(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    attached = any(getattr(module, name) for name in hooks) or "forward" in module.__dict__
    return type(module) is nn.Linear and not attached
