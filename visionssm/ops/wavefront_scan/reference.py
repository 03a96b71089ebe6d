"""The oracle: the recurrence written out cell by cell, differentiable by autograd, in float32 or float64."""

import torch
from torch import Tensor

from .backend import Backend
from .contract import Wavefront


def wavefront_scan_reference(scan: Wavefront) -> Tensor:
    """Mamba2D, arXiv:2412.16146, section 3; returns x's shape and dtype. One Python iteration per cell."""
    maps = scan.computed()
    A_top, A_left, D = maps.A_top, maps.A_left, maps.D
    height, width = maps.x.shape[1:3]
    # unbind, not indexing: its backward does not write a whole map of zeros for every cell
    x, delta_top, delta_left, B_top, B_left, C = (
        t.flatten(1, 2).unbind(1) for t in (maps.x, maps.delta_top, maps.delta_left, maps.B_top, maps.B_left, maps.C)
    )
    states: list[Tensor] = []
    outputs = []
    for i in range(height):
        for j in range(width):
            k = i * width + j
            parts = []
            if i > 0:
                part = (delta_top[k] * x[k])[..., None] * B_top[k][:, None]
                parts.append(torch.exp(delta_top[k][..., None] * A_top) * states[k - width] + part)
            if j > 0 or i == 0:
                part = (delta_left[k] * x[k])[..., None] * B_left[k][:, None]
                parts.append(torch.exp(delta_left[k][..., None] * A_left) * states[k - 1] + part if j > 0 else part)
            states.append((parts[0] + parts[1]) / 2 if len(parts) == 2 else parts[0])
            y = (states[k] * C[k][:, None]).sum(-1)
            outputs.append(y if D is None else y + D * x[k])
    return torch.stack(outputs, 1).view(scan.x.shape).to(scan.x.dtype)


def forward(scan: Wavefront, save: bool) -> tuple[Tensor, Tensor | None]:
    """As `Backend` says; saves nothing."""
    with torch.no_grad():
        return wavefront_scan_reference(scan), scan.x.new_empty(0, dtype=scan.compute_dtype) if save else None


def backward(grad: Tensor, states: Tensor, scan: Wavefront) -> tuple[Tensor | None, ...]:
    """As `Backend` says."""
    # operators run with autograd's dispatch keys shut off: open them again
    C = torch._C
    shut = C._dispatch_tls_local_exclude_set().remove(C.DispatchKey.AutogradFunctionality)
    with C._ForceDispatchKeyGuard(C._dispatch_tls_local_include_set(), shut), torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in scan]
        y = wavefront_scan_reference(Wavefront._make(leaves))
        given = [t for t in leaves if t is not None]
        grads = iter(torch.autograd.grad(y, given, grad, materialize_grads=True))
    return tuple(None if t is None else next(grads).contiguous() for t in leaves)


def states_shape(scan: Wavefront) -> tuple[int, ...]:
    """As `Backend` says."""
    return (0,)


# never taken unasked: it is there to be compared with
BACKEND = Backend("reference", (), lambda device, dtype: None, forward, backward, states_shape)
