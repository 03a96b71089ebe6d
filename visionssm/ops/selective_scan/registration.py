"""The scan as an operator of torch.library, so that compilers, exporters and counters know it.

The operator's `backend` is the one that the caller asked for, "" where none was. Which one runs is settled when the
operator runs, below every tracer: a compiled or exported program holds no choice of the machine it was made on, but for
the shape of the states that a traced forward saves for its backward. Another backend may only take over a compiled
training step together with its backward; the backward refuses states that are not its backend's.
"""

from math import inf
from typing import get_type_hints

import torch
from torch import Tensor

from .backend import Backend
from .backends import choose_backend
from .contract import Scan
from .doubling import selective_scan_doubling

_FIELDS = len(Scan._fields)
_TENSORS = Scan._fields.index("order")  # those before have gradients
_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    int: "SymInt",
    bool: "bool",
    str: "str",
    torch.dtype: "ScalarType",
}
_SCAN = ", ".join(f"{_TYPES[hint]} {name}" for name, hint in get_type_hints(Scan).items())

_library = torch.library.Library("visionssm", "DEF")
_library.define(f"selective_scan({_SCAN}, str backend, bool save) -> (Tensor, Tensor, Tensor)")
_library.define(
    f"selective_scan_backward(Tensor grad, Tensor? grad_last, Tensor states, {_SCAN}, str backend) -> "
    f"({', '.join(['Tensor'] * _TENSORS)})"
)
scan_op = torch.ops.visionssm.selective_scan.default
backward_op = torch.ops.visionssm.selective_scan_backward.default


def _nothing(scan: Scan) -> Tensor:
    """What stands for an absent result: an operator returns tensors."""
    return scan.u.new_empty(0, dtype=scan.compute_dtype)


def _running(scan: Scan, backend: str, save: bool) -> Backend:
    return choose_backend(backend, scan.u.device, scan.u.dtype, inf if save else scan.updates)


def _forward(*args):
    scan, (backend, save) = Scan(*args[:_FIELDS]), args[_FIELDS:]
    if scan.batch == 0:
        out, last, states = _forward_fake(*args)
        return out.zero_(), last.zero_(), states.zero_()
    results = _running(scan, backend, save).forward(scan, save)
    return tuple(_nothing(scan) if result is None else result for result in results)


def _forward_fake(*args):
    scan, (backend, save) = Scan(*args[:_FIELDS]), args[_FIELDS:]
    out = scan.u.new_empty(scan.out_shape, dtype=scan.out_dtype)
    last = scan.u.new_empty(scan.state_shape, dtype=scan.compute_dtype) if scan.last_state else _nothing(scan)
    if not save:
        return out, last, _nothing(scan)
    shape = choose_backend(backend, scan.u.device, scan.u.dtype).states_shape(scan)
    return out, last, scan.u.new_empty(shape, dtype=scan.compute_dtype)


def _backward(grad, grad_last, states, *args):
    scan, name = Scan(*args[:_FIELDS]), args[_FIELDS]
    if scan.batch == 0:
        return tuple(_nothing(scan) if t is None else torch.zeros_like(t) for t in scan.tensors)
    backend = choose_backend(name, scan.u.device, scan.u.dtype)
    shape = backend.states_shape(scan)
    if states.shape != shape:
        if states.numel() > 0:
            raise RuntimeError(
                f"the {backend.name} backend was given states of shape {tuple(states.shape)}, not {tuple(shape)}: "
                "another backend ran the forward. Choose the backend (VISIONSSM_BACKEND) before the model is compiled "
                "and leave it until the backward has run"
            )
        states = backend.forward(scan, True)[2]  # the program was traced without a backward in view
    grads = backend.backward(grad, grad_last, states, scan)
    return tuple(_nothing(scan) if g is None else g for g in grads)


def _backward_fake(grad, grad_last, states, *args):
    scan = Scan(*args[:_FIELDS])
    return tuple(
        _nothing(scan) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in scan.tensors
    )


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, *args):
        scan, (backend, _) = Scan(*args[:_FIELDS]), args[_FIELDS:]
        if type(scan.u) in (Tensor, torch.nn.Parameter):  # not traced: forward and backward of one call agree
            backend = _running(scan, backend, args[-1]).name
        out, last, states = scan_op.redispatch(keyset & torch._C._after_autograd_keyset, *scan, backend, args[-1])
        ctx.backend, ctx.rest = backend, scan[_TENSORS + 1 :]
        ctx.save_for_backward(states, *scan[: _TENSORS + 1])
        ctx.mark_non_differentiable(*([states] if scan.last_state else [last, states]))
        ctx.set_materialize_grads(False)
        return out, last, states

    @staticmethod
    def backward(ctx, grad, grad_last, _):
        none = (None,) * (1 + _FIELDS + 2)
        if grad is None and grad_last is None:
            return none
        states, *tensors = ctx.saved_tensors
        scan = Scan(*tensors, *ctx.rest)
        if grad is None:
            grad = scan.u.new_zeros(scan.out_shape, dtype=scan.out_dtype)
        grads = backward_op(grad, grad_last, states, *scan, ctx.backend)
        needed = zip(grads, scan.tensors, ctx.needs_input_grad[1:], strict=False)
        return None, *(g if t is not None and need else None for g, t, need in needed), *none[1 + _TENSORS :]


def _scan_autograd(keyset, *args):
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in args[:_TENSORS]):
        return _Scan.apply(keyset, *args)
    return scan_op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


_library.impl("selective_scan", _forward, "CompositeExplicitAutograd")
_library.impl("selective_scan_backward", _backward, "CompositeExplicitAutograd")
_library.impl("selective_scan", _scan_autograd, "Autograd", with_keyset=True)
torch.library.register_fake("visionssm::selective_scan", _forward_fake, lib=_library)
torch.library.register_fake("visionssm::selective_scan_backward", _backward_fake, lib=_library)


@torch._decomp.register_decomposition(scan_op)
def _decompose(*args):
    """What the ONNX exporter puts in the place of the operator."""
    scan = Scan(*args[:_FIELDS])
    out, last = selective_scan_doubling(scan)
    return out, last if scan.last_state else _nothing(scan), _nothing(scan)
