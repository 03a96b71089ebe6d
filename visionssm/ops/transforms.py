"""Operators without formulas for tangents say so, where PyTorch would take the tangents to be zero."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_transforms(name: str, *tensors: Tensor | None) -> None:
    """Refuse the transforms of torch.func and tensors with tangents.

    Args:
        name: The operator, for the message.
        *tensors: Its inputs.

    Raises:
        NotImplementedError: a transform is being applied, or an input has a tangent.
    """
    if torch.compiler.is_compiling():
        return
    dual = forward_ad._current_level >= 0
    if torch._C._are_functorch_transforms_active() or (
        dual and any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    ):
        raise NotImplementedError(
            f"{name} has no tangents and no transforms of torch.func; use torch.autograd.grad, or give it "
            "backend='reference', which is slow"
        )
