"""The backends of the causal convolution: the preferred first, the choice among them, their derivatives."""

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import conv_native_backend, conv_triton_backend
from .conv_backend import Conv, ConvBackend

CONV_BACKENDS: tuple[ConvBackend, ...] = (conv_triton_backend.BACKEND, conv_native_backend.BACKEND)


def choose_conv_backend(x: Tensor) -> ConvBackend | None:
    """The first that can run, or the one that VISIONSSM_BACKEND names; None for the formula.

    Compilers see the formula, whose operators they fuse, and so does `torch.jit.trace`, by which some libraries count
    operations. torch.func's transforms and tangents need it.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or x.is_meta or x.shape[0] == 0:
        return None
    if type(x) not in (Tensor, torch.nn.Parameter):
        return None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None
    forced = os.environ.get("VISIONSSM_BACKEND")
    for backend in CONV_BACKENDS:
        if backend.name == forced if forced else x.device.type in backend.devices:
            if backend.unavailable(x.device.type, x.dtype) is None:
                return backend
    return None


class Convolve(torch.autograd.Function):
    """A backend's convolution; whatever is differentiated twice goes through the formula."""

    @staticmethod
    def forward(ctx, backend: ConvBackend, formula: Callable[[Conv], Tensor], *call):
        conv = Conv(*call)
        ctx.backend, ctx.formula, ctx.rest = backend, formula, conv[4:]
        ctx.save_for_backward(*conv[:4])
        return backend.forward(conv)

    @staticmethod
    def backward(ctx, grad):
        conv = Conv(*ctx.saved_tensors, *ctx.rest)
        if torch.is_grad_enabled():
            # partial derivatives, whatever the tensors are computed from
            inputs = [t if t is None else t.view_as(t) for t in ctx.saved_tensors[:3]]
            wanted = [t for t in inputs if t is not None and t.requires_grad]
            out = ctx.formula(Conv(*inputs, *conv[3:]))
            found = iter(torch.autograd.grad(out, wanted, grad, create_graph=True))
            grads = tuple(next(found) if t is not None and t.requires_grad else None for t in inputs)
        else:
            grads = ctx.backend.backward(grad, conv)
        return None, None, *grads, None, None, None
