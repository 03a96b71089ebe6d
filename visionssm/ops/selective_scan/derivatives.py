"""How the scan's operator is differentiated, and how torch.func's transforms go through it.

The first derivative in reverse is a backend's. Tangents, second derivatives and the transforms that need them are those
of the scan's formula in PyTorch's own operators, which can be differentiated any number of times.
"""

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .backends import running_backend
from .contract import Scan
from .formula import selective_scan_formula

_FIELDS = len(Scan._fields)
_TENSORS = len(Scan.differentiable())
_logger = logging.getLogger(__name__)
_told: set[str] = set()


_implementations: dict[str, Callable] = {}


def register_derivatives(library: torch.library.Library, forward: Callable, backward: Callable) -> None:
    """Give the operators, computed by `forward` and `backward`, their derivatives and rules for `torch.func.vmap`."""
    _implementations.update(selective_scan=forward, selective_scan_backward=backward)
    library.impl("selective_scan", _scan, "Autograd", with_keyset=True)
    library.impl("selective_scan_backward", _scan_backward, "Autograd", with_keyset=True)
    torch.library.register_vmap("visionssm::selective_scan", _vmap_scan, lib=library)
    torch.library.register_vmap("visionssm::selective_scan_backward", _vmap_backward, lib=library)


def _ops():
    namespace = torch.ops.visionssm
    return namespace.selective_scan.default, namespace.selective_scan_backward.default


def _below(name: str, keyset, *args):
    """The operator under autograd: past the dispatcher where neither a mode nor a subclass of tensors lies between."""
    below = keyset & torch._C._after_ADInplaceOrView_keyset
    if below.highestPriorityTypeId() in _NOTHING_BETWEEN:
        return _implementations[name](*args)
    return getattr(torch.ops.visionssm, name).default.redispatch(below, *args)


_NOTHING_BETWEEN = (torch._C.DispatchKey.BackendSelect, torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)


def needs_formula(tensors) -> bool:
    """Whether a transform of torch.func is being applied, or one of the tensors has a tangent."""
    if torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _say(what: str) -> None:
    if what not in _told:
        _told.add(what)
        _logger.info("selective_scan computes %s by a formula of PyTorch's operators, slower than its kernels", what)


# --- the scan ---------------------------------------------------------------------------------------------------------


def _scan(keyset, *args):
    scan = Scan(*args[:_FIELDS])
    if needs_formula(scan.tensors):
        _say("tangents and transforms of torch.func")
        out, last = selective_scan_formula(scan)
        return out, last if scan.last_state else scan.nothing, scan.nothing
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in scan.tensors):
        return _Scan.apply(keyset, *args)
    return _below("selective_scan", keyset, *args)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, *args):
        scan, (backend, save) = Scan(*args[:_FIELDS]), args[_FIELDS:]
        if type(scan.u) in (Tensor, torch.nn.Parameter):  # not traced: forward and backward of one call agree
            backend = running_backend(scan, backend, save).name
        out, last, states = _below("selective_scan", keyset, *scan, backend, save)
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
        grads = _ops()[1](grad, grad_last, states, *scan, ctx.backend)
        needed = zip(grads, scan.tensors, ctx.needs_input_grad[1:], strict=False)
        return None, *(g if t is not None and need else None for g, t, need in needed), *none[1 + _TENSORS :]


# --- its backward -----------------------------------------------------------------------------------------------------


def _scan_backward(keyset, grad, grad_last, states, *args):
    scan = Scan(*args[:_FIELDS])
    tensors = (grad, grad_last, *scan.tensors)
    if needs_formula(tensors):
        _say("tangents and transforms of torch.func")
        with torch.enable_grad():
            grads = _formula_gradients([_alias(t) for t in tensors], scan)
        return tuple(scan.nothing if g is None else g for g in grads)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _ScanBackward.apply(keyset, grad, grad_last, states, *args)
    return _below("selective_scan_backward", keyset, grad, grad_last, states, *args)


class _ScanBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, keyset, grad, grad_last, states, *args):
        scan = Scan(*args[:_FIELDS])
        grads = _below("selective_scan_backward", keyset, grad, grad_last, states, *args)
        ctx.rest = scan[_TENSORS + 1 :]
        ctx.save_for_backward(grad, grad_last, *scan[: _TENSORS + 1])
        ctx.mark_non_differentiable(*(g for g, t in zip(grads, scan.tensors, strict=True) if t is None))
        ctx.set_materialize_grads(False)
        return grads

    @staticmethod
    def backward(ctx, *weights):
        _say("second derivatives")
        further = torch.is_grad_enabled()
        saved = ctx.saved_tensors
        scan = Scan(*saved[2:], *ctx.rest)
        with torch.enable_grad():
            inputs = [_alias(t) for t in saved[: 2 + _TENSORS]]
            grads = _formula_gradients(inputs, scan)
        pairs = [(g, w) for g, w in zip(grads, weights, strict=True) if g is not None and w is not None]
        wanted = [i for i, t in enumerate(inputs) if t is not None and saved[i].requires_grad]
        found = dict.fromkeys(range(len(inputs)))
        if pairs:
            outputs, weights = zip(*pairs, strict=True)
            chosen = [inputs[i] for i in wanted]
            second = torch.autograd.grad(outputs, chosen, weights, create_graph=further, allow_unused=True)
            found.update(zip(wanted, second, strict=True))
        grad, grad_last, *tensors = found.values()
        return None, grad, grad_last, None, *tensors, *(None,) * (_FIELDS - _TENSORS + 1)


def _alias(t: Tensor | None) -> Tensor | None:
    """The same values as a variable of their own: partial derivatives, whatever the tensors are computed from."""
    if t is None:
        return None
    t = t.view_as(t)
    return t if t.requires_grad else t.requires_grad_()


def _formula_gradients(inputs: list[Tensor | None], scan: Scan) -> list[Tensor | None]:
    """The scan's gradients as functions of (grad, grad_last, the scan's tensors); None where there are none."""
    grad, grad_last, *tensors = inputs
    outputs = selective_scan_formula(Scan._make([*tensors, *scan[_TENSORS:]]))
    given = [t for t in tensors if t is not None]
    weights = (grad,) if grad_last is None else (grad, grad_last)
    found = iter(
        torch.autograd.grad(outputs[: len(weights)], given, weights, create_graph=True, materialize_grads=True)
    )
    return [None if t is None else next(found) for t in tensors]


# --- torch.func.vmap --------------------------------------------------------------------------------------------------

_BY_IMAGE = ("u", "delta", "B", "C", "initial_state")


def _vmap_scan(info, in_dims, *args):
    """Images of images are images; what else is mapped over is scanned one by one."""
    op, V = _ops()[0], info.batch_size
    scan = Scan(*args[:_FIELDS])
    if all(dim is None or name in _BY_IMAGE for name, dim in zip(Scan._fields, in_dims, strict=False)):
        folded = {}
        for name, dim in zip(Scan._fields, in_dims, strict=False):
            t = getattr(scan, name)
            if name in _BY_IMAGE and t is not None:
                t = t.unsqueeze(0).expand(V, *t.shape) if dim is None else t.movedim(dim, 0)
                folded[name] = t.flatten(0, 1)
        out, last, _ = op(*scan._replace(**folded), *args[_FIELDS:])
        out = out.unflatten(0, (V, -1))
        last = last.unflatten(0, (V, -1)) if scan.last_state else last
    else:
        results = [op(*_pick(args, in_dims, i))[:2] for i in range(V)]
        out, last = (torch.stack(x) for x in zip(*results, strict=True))
        last = last if scan.last_state else last[0]
    # the graph, where there is one, was kept below: nobody reads the states
    return (out, last, scan.nothing), (0, 0 if scan.last_state else None, None)


def _vmap_backward(info, in_dims, *args):
    results = [_ops()[1](*_pick(args, in_dims, i)) for i in range(info.batch_size)]
    return tuple(torch.stack(x) for x in zip(*results, strict=True)), (0,) * _TENSORS


def _pick(args, in_dims, i: int) -> list:
    return [t if dim is None else t.select(dim, i) for t, dim in zip(args, in_dims, strict=True)]
