"""Reading a linear layer's weights without calling it, where nothing is attached that would miss the call."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _modules

from .._timm_compat import register_notrace_function


@register_notrace_function  # fx cannot follow a decision on a module
def split_linear(linear: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves of linear(x) (..., 2 d), each (..., d).

    A plain `nn.Linear` to which nothing is attached is read as two products, whose contiguous results no convolution
    has to copy; anything else (hooks, adapters, parametrisations, quantised layers) is called.
    """
    if not is_plain_linear(linear):
        first, second = linear(x).chunk(2, dim=-1)
        return first, second
    weights = linear.weight.chunk(2)
    biases = (None, None) if linear.bias is None else linear.bias.chunk(2)
    return F.linear(x, weights[0], biases[0]), F.linear(x, weights[1], biases[1])


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a layer is torch's own Linear with nothing attached, so that its weights may be read without a call."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    attached = any(getattr(module, name) for name in hooks) or "forward" in module.__dict__
    # hooks of every module, as profilers set them; a weight of another class is quantised or lies elsewhere
    everywhere = any(getattr(_modules, f"_global{name}") for name in hooks)
    return (
        type(module) is nn.Linear and type(module.weight) in (nn.Parameter, Tensor) and not attached and not everywhere
    )
