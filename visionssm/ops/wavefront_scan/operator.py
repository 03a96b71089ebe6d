"""The public function, and its registration with torch.library and the FLOP counter."""

from typing import cast

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula

from ..transforms import refuse_transforms
from .backends import choose_backend, running_backend
from .contract import Wavefront, check
from .reference import wavefront_scan_reference
from .unrolled import wavefront_scan_unrolled


def wavefront_scan(
    x: Tensor,
    delta_top: Tensor,
    delta_left: Tensor,
    A_top: Tensor,
    A_left: Tensor,
    B_top: Tensor,
    B_left: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Selective recurrence in two dimensions (Mamba2D, arXiv:2412.16146, section 3).

    The state of a cell is fed by the one above and the one on the left, each direction with its own decay, step size
    and input projection, in float32 (float64 for float64 inputs). For row i, column j and each channel:

        top(i, j)  = exp(delta_top A_top) h(i-1, j) + delta_top B_top x
        left(i, j) = exp(delta_left A_left) h(i, j-1) + delta_left B_left x
        h(i, j) = (top + left) / 2 where i, j > 0;  left where i = 0 (no state before at j = 0);  top where j = 0 < i
        y(i, j) = C . h(i, j) + D x

    Args:
        x: Input, (b, H, W, d); float32, bfloat16, float16 or float64.
        delta_top: Positive step sizes, after the softplus, (b, H, W, d).
        delta_left: The same of the other direction.
        A_top: Decay rates, negative, (d, N), N from 1 to 64; float32 (float64 with float64 inputs).
        A_left: As A_top.
        B_top: Input projection, (b, H, W, N).
        B_left: As B_top.
        C: Output projection, (b, H, W, N).
        D: Skip weight, (d,), dtype of A_top.
        backend: "triton", "native", "portable" or "reference", the definition cell by cell; None reads the environment
            variable VISIONSSM_BACKEND and else takes Triton on GPUs, the native library on CPUs where it was compiled,
            and the portable implementation anywhere else and for float64. A compiled or exported program holds no
            choice but the one asked for here.

    Returns:
        (b, H, W, d) in x's dtype.

    Raises:
        ValueError: a shape, device or backend is wrong.
        TypeError: a dtype is wrong.
        RuntimeError: the backend asked for cannot run here.
    """
    scan = Wavefront(x, delta_top, delta_left, A_top, A_left, B_top, B_left, C, D)
    if has_torch_function_variadic(*scan):
        return handle_torch_function(wavefront_scan, scan, *scan, backend=backend)
    check(scan)
    if backend is not None:
        choose_backend(backend, x.device, x.dtype)  # refused here, if at all, by compilers too
    if backend == "reference":
        return wavefront_scan_reference(scan)  # not the operator, which has first derivatives only
    refuse_transforms("wavefront_scan", *scan)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in scan)
    return torch.ops.visionssm.wavefront_scan(*scan, backend or "", save)[0]


@torch.library.custom_op("visionssm::wavefront_scan", mutates_args=())
def _forward(
    x: Tensor,
    delta_top: Tensor,
    delta_left: Tensor,
    A_top: Tensor,
    A_left: Tensor,
    B_top: Tensor,
    B_left: Tensor,
    C: Tensor,
    D: Tensor | None,
    backend: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    scan = Wavefront(x, delta_top, delta_left, A_top, A_left, B_top, B_left, C, D)
    if x.shape[0] == 0:
        shape = choose_backend(backend, x.device, x.dtype).states_shape(scan) if save else (0,)
        return x.new_empty(x.shape), x.new_empty(shape, dtype=scan.compute_dtype)
    y, states = running_backend(scan, backend, save).forward(scan, save)
    return y, x.new_empty(0, dtype=scan.compute_dtype) if states is None else states


@torch.library.custom_op("visionssm::wavefront_scan_backward", mutates_args=())
def _backward(
    grad: Tensor,
    states: Tensor,
    x: Tensor,
    delta_top: Tensor,
    delta_left: Tensor,
    A_top: Tensor,
    A_left: Tensor,
    B_top: Tensor,
    B_left: Tensor,
    C: Tensor,
    D: Tensor | None,
    backend: str,
) -> list[Tensor]:
    scan = Wavefront(x, delta_top, delta_left, A_top, A_left, B_top, B_left, C, D)
    if x.shape[0] == 0:
        return [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in scan if t is not None]
    chosen = choose_backend(backend, x.device, x.dtype)
    if states.shape != chosen.states_shape(scan):
        if states.numel():
            raise RuntimeError(
                f"the {chosen.name} backend was given states that another backend saved; choose the backend "
                "(VISIONSSM_BACKEND) before the model is compiled and leave it until the backward has run"
            )
        # the program was traced without a backward in view
        states = cast(Tensor, chosen.forward(scan, True)[1])
    return [g for g in chosen.backward(grad, states, scan) if g is not None]


@_forward.register_fake
def _forward_fake(*args):
    scan, (backend, save) = Wavefront(*args[:9]), args[9:]
    shape = choose_backend(backend, scan.x.device, scan.x.dtype).states_shape(scan) if save else 0
    states = scan.x.new_empty(shape, dtype=scan.compute_dtype)
    return torch.empty_like(scan.x, memory_format=torch.contiguous_format), states


@_backward.register_fake
def _backward_fake(grad, states, *args):
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in args[:9] if t is not None]


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(output[1], *inputs[:9])
    ctx.backend = inputs[9]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, _):
    if grad is None:
        return (None,) * 11
    grads = torch.ops.visionssm.wavefront_scan_backward(grad, *ctx.saved_tensors, ctx.backend)
    return *grads, *(None,) * (11 - len(grads))  # D, the last, may be absent


_forward.register_autograd(_autograd, setup_context=_setup_context)


@torch._decomp.register_decomposition(torch.ops.visionssm.wavefront_scan.default)
def _decompose(*args):
    """What the ONNX exporter puts in the place of the operator."""
    scan = Wavefront(*args[:9])
    return wavefront_scan_unrolled(scan), scan.x.new_empty(0)


def wavefront_scan_flops(b: int, H: int, W: int, d: int, N: int) -> int:
    """2 (11 b H W d N + b H W d): per state two exponents and exponentials, two states and inputs, their sum, C.

    As in the field's count for the selective scan an exponential counts one multiply-add.
    """
    return 2 * (11 * b * H * W * d * N + b * H * W * d)


@register_flop_formula(torch.ops.visionssm.wavefront_scan)
def _forward_flops(x, delta_top, delta_left, A_top, *args, out_shape=None, **kwargs) -> int:
    b, H, W, d = x
    return wavefront_scan_flops(b, H, W, d, A_top[1])


@register_flop_formula(torch.ops.visionssm.wavefront_scan_backward)
def _backward_flops(grad, states, x, delta_top, delta_left, A_top, *args, out_shape=None, **kwargs) -> int:
    b, H, W, d = x
    return 2 * wavefront_scan_flops(b, H, W, d, A_top[1])
