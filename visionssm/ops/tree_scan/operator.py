"""The public function, and its registration with torch.library and the FLOP counter."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic
from torch.utils.flop_counter import register_flop_formula

from ..transforms import refuse_transforms
from . import portable
from .doubling import tree_scan_doubling
from .reference import tree_scan_reference

_BACKENDS = ("portable", "reference")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tree_scan(x: Tensor, decay: Tensor, parent: Tensor, *, backend: str = "portable") -> Tensor:
    """Every vertex of a tree gathers all others, decayed along the way (GrootVL, arXiv:2406.02395, section 3.2).

        h_i = sum_j S(i, j) x_j,    S(i, j) = product of the decays of the edges between i and j

    for each channel, in time linear in the vertices: once from the leaves to the root, once back. Computed in float32
    (float64 for float64 inputs).

    Args:
        x: Input, (b, L, d); float32, bfloat16, float16 or float64.
        decay: Decay of the edge from each vertex to its parent, (b, L, d), unused at roots; a dtype as for x, float64
            only with float64.
        parent: Vertex that each vertex hangs on, (b, L), int64; -1 for a root. Several trees in one image are several
            independent scans.
        backend: "portable" or "reference", the step-by-step definition.

    Returns:
        (b, L, d) in x's dtype.

    Raises:
        ValueError: a shape, device or backend is wrong, an entry of `parent` is out of range, or it has a cycle.
        TypeError: a dtype is wrong.
    """
    tensors = (x, decay, parent)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(tree_scan, tensors, x, decay, parent, backend=backend)
    if backend not in _BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; expected one of {', '.join(_BACKENDS)}")
    if x.ndim != 3 or 0 in x.shape[1:]:
        raise ValueError(f"x must be (b, L, d) with L and d at least 1, got shape {tuple(x.shape)}")
    if decay.shape != x.shape:
        raise ValueError(f"decay has shape {tuple(decay.shape)} but x has {tuple(x.shape)}; they must agree")
    if parent.shape != x.shape[:2]:
        raise ValueError(f"parent has shape {tuple(parent.shape)}, expected {tuple(x.shape[:2])}")
    for name, t in (("x", x), ("decay", decay)):
        if t.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {t.dtype}")
    if (x.dtype == torch.float64) != (decay.dtype == torch.float64):
        raise TypeError(f"decay is {decay.dtype} but x is {x.dtype}; float64 does not mix with other dtypes")
    if parent.dtype != torch.int64:
        raise TypeError(f"parent must be int64, got {parent.dtype}")
    for name, t in (("decay", decay), ("parent", parent)):
        if t.device != x.device:
            raise ValueError(f"{name} is on {t.device} but x is on {x.device}; all tensors must share one device")
    if backend == "reference":
        portable.sort_by_depth(parent)  # for its checks
        return tree_scan_reference(x, decay, parent)
    refuse_transforms("tree_scan", x, decay)
    return torch.ops.visionssm.tree_scan(x, decay, parent)


@torch.library.custom_op("visionssm::tree_scan", mutates_args=())
def _forward(x: Tensor, decay: Tensor, parent: Tensor) -> Tensor:
    return portable.forward(x, decay, parent) if x.shape[0] else torch.empty_like(x)


@torch.library.custom_op("visionssm::tree_scan_backward", mutates_args=())
def _backward(grad: Tensor, x: Tensor, decay: Tensor, parent: Tensor) -> tuple[Tensor, Tensor]:
    if not x.shape[0]:
        return torch.empty_like(x), torch.empty_like(decay)
    return portable.backward(grad, x, decay, parent)


@_forward.register_fake
def _forward_fake(x: Tensor, decay: Tensor, parent: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_backward.register_fake
def _backward_fake(grad: Tensor, x: Tensor, decay: Tensor, parent: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), decay.new_empty(decay.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _autograd(ctx, grad: Tensor):
    return *torch.ops.visionssm.tree_scan_backward(grad, *ctx.saved_tensors), None


_forward.register_autograd(_autograd, setup_context=_setup_context)


@torch._decomp.register_decomposition(torch.ops.visionssm.tree_scan.default)
def _decompose(x: Tensor, decay: Tensor, parent: Tensor) -> Tensor:
    """What the ONNX exporter puts in the place of the operator."""
    return tree_scan_doubling(x, decay, parent)


def tree_scan_flops(b: int, L: int, d: int) -> int:
    """2 (4 b L d): a multiply-add up the tree, two for what stays at a vertex, and one down."""
    return 2 * 4 * b * L * d


@register_flop_formula(torch.ops.visionssm.tree_scan)
def _forward_flops(x, *args, out_shape=None, **kwargs) -> int:
    return tree_scan_flops(*x)


@register_flop_formula(torch.ops.visionssm.tree_scan_backward)
def _backward_flops(grad, *args, out_shape=None, **kwargs) -> int:
    return 2 * tree_scan_flops(*grad)
