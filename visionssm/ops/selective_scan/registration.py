"""The scan as an operator of torch.library, so that compilers, exporters and counters know it.

The operator's `backend` is the one that the caller asked for, "" where none was. Which one runs is settled when the
operator runs, below every tracer: a compiled or exported program holds no choice of the machine it was made on, but for
the shape of the states that a traced forward saves for its backward. Another backend may only take over a compiled
training step together with its backward; the backward refuses states that are not its backend's.
"""

from typing import get_type_hints

import torch
from torch import Tensor

from .backends import choose_backend, running_backend
from .contract import Scan
from .derivatives import register_derivatives
from .formula import selective_scan_formula

_FIELDS = len(Scan._fields)
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
    f"({', '.join(['Tensor'] * len(Scan.differentiable()))})"
)
scan_op = torch.ops.visionssm.selective_scan.default


def _forward(*args):
    scan, (backend, save) = Scan(*args[:_FIELDS]), args[_FIELDS:]
    if scan.batch == 0:
        return _forward_fake(*args)
    results = running_backend(scan, backend, save).forward(scan, save)
    return tuple(scan.nothing if result is None else result for result in results)


def _forward_fake(*args):
    scan, (backend, save) = Scan(*args[:_FIELDS]), args[_FIELDS:]
    out = scan.u.new_empty(scan.out_shape, dtype=scan.out_dtype)
    last = scan.u.new_empty(scan.state_shape, dtype=scan.compute_dtype) if scan.last_state else scan.nothing
    if not save or (type(scan.batch) is int and scan.batch == 0):
        return out, last, scan.nothing
    shape = choose_backend(backend, scan.u.device, scan.u.dtype).states_shape(scan)
    return out, last, scan.u.new_empty(shape, dtype=scan.compute_dtype)


def _backward(grad, grad_last, states, *args):
    scan, name = Scan(*args[:_FIELDS]), args[_FIELDS]
    if scan.batch == 0:
        return tuple(scan.nothing if t is None else torch.zeros_like(t) for t in scan.tensors)
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
    return tuple(scan.nothing if g is None else g for g in grads)


def _backward_fake(grad, grad_last, states, *args):
    scan = Scan(*args[:_FIELDS])
    return tuple(
        scan.nothing if t is None else torch.empty_like(t, memory_format=torch.contiguous_format) for t in scan.tensors
    )


_library.impl("selective_scan", _forward, "CompositeExplicitAutograd")
_library.impl("selective_scan_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("visionssm::selective_scan", _forward_fake, lib=_library)
torch.library.register_fake("visionssm::selective_scan_backward", _backward_fake, lib=_library)
register_derivatives(_library, _forward, _backward)


@torch._decomp.register_decomposition(scan_op)
def _decompose(*args):
    """What the ONNX exporter puts in the place of the operator."""
    scan = Scan(*args[:_FIELDS])
    out, last = selective_scan_formula(scan)
    return out, last if scan.last_state else scan.nothing, scan.nothing
