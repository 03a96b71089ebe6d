"""The public function, the choice of backend, and the registration with torch.library."""

import logging
import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from . import portable
from .contract import Scan, canonical
from .doubling import selective_scan_doubling
from .reference import selective_scan_reference

_logger = logging.getLogger(__name__)
_BACKENDS = ("triton", "portable", "reference")
_told: set[str] = set()


def _triton_version() -> tuple[int, ...] | None:
    # read, not imported: it exists on few platforms and under several distributions' names
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm"):
        try:
            return tuple(int(part) for part in version(name).split("+")[0].split(".")[:2])
        except PackageNotFoundError:
            continue
    return None


_TRITON = _triton_version()


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    dt_weight: Tensor | None = None,
    order: Tensor | None = None,
    num_tokens: int | None = None,
    u_index: str = "token",
    index: str = "token",
    out: str = "sum",
    out_dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> Tensor:
    """Selective scan along one or several routes over the same tokens (Mamba, arXiv:2312.00752, section 3.2).

    For batch b, route k, channel d and scan step t, with float32 state (float64 for float64 inputs):

        delta = softplus(delta_raw + delta_bias)
        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        y_t = C_t . h_t + D u_t

    L is the number of tokens, T the number of scan steps. Tensors without a route axis are shared by all routes.

    Args:
        u: Input, (b, L, [k,] d), or (b, T, [k,] d) with `u_index="step"`; float32, bfloat16, float16 or float64.
        delta: Raw step size, (b, L or T, [k,] d); with `dt_weight` of low rank, (b, L or T, [k,] R).
        A: Decay rates, negative, ([k,] d, N), N from 1 to 64; float32 (float64 with float64 inputs).
        B: Input projection, (b, L or T, [k,] N).
        C: Output projection, as B. None, for N = 1 only, returns the states themselves.
        D: Skip weight, ([k,] d), dtype of A.
        delta_bias: Added to delta before the softplus, ([k,] d), dtype of A.
        dt_weight: Expands a low-rank delta to the channels inside the scan, ([k,] d, R).
        order: Integer table (k, T): the token read at each step; None reads tokens as stored, in one route or in each
            of the routes the other tensors have. An entry of -1 reads a zero token: the state decays by
            softplus(delta_bias) and the output of the step is dropped. A route may visit a part of the tokens, or a
            token several times (outputs add).
        num_tokens: L; needed when u, delta, B and C are all stored by step and `order` is given.
        u_index: "token" or "step": how u is stored.
        index: "token" or "step": how delta, B and C are stored.
        out: "sum" returns the routes merged, (b, L, d); "route" each route by token, (b, L, k, d); "step" each route
            as scanned, (b, T, k, d).
        out_dtype: Dtype of the result; u's if None.
        backend: "triton", "portable" or "reference"; None reads the environment variable VISIONSSM_BACKEND and else
            takes Triton on GPUs and the portable implementation anywhere else.

    Returns:
        The output in the shape that `out` says.

    Raises:
        ValueError: a shape, a device, a choice or a table entry is wrong.
        TypeError: a dtype is wrong.
        RuntimeError: the backend asked for cannot run here.
    """
    tensors = (u, delta, A, B, C, D, delta_bias, dt_weight, order)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            selective_scan,
            tensors,
            u,
            delta,
            A,
            B,
            C,
            D,
            delta_bias,
            dt_weight=dt_weight,
            order=order,
            num_tokens=num_tokens,
            u_index=u_index,
            index=index,
            out=out,
            out_dtype=out_dtype,
            backend=backend,
        )
    scan = canonical(u, delta, A, B, C, D, delta_bias, dt_weight, order, num_tokens, u_index, index, out, out_dtype)
    backend = _choose_backend(backend, scan.u)
    if backend == "reference":
        if order is not None and not torch.compiler.is_compiling():
            portable.check_table(order, scan.num_tokens)
        return selective_scan_reference(scan)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in scan[:8])
    return torch.ops.visionssm.selective_scan(*scan, backend, save)[0]


def available_backends() -> list[str]:
    """The backends that can run on this machine, the preferred one first."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [name for name in _BACKENDS if name != "triton" or _why_no_triton(device, torch.float32) is None]


def _why_no_triton(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the Triton backend cannot run on a device, or None if it can."""
    if _TRITON is None:
        return "triton is not installed"
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "its kernels need a GPU (for tests, TRITON_INTERPRET=1 in the environment interprets them on a CPU)"
    if _TRITON < (3, 5):
        return f"its kernels need triton 3.5 (PyTorch 2.9) or newer, found {'.'.join(map(str, _TRITON))}"
    if dtype == torch.float64:
        return "its kernels take float32, bfloat16 and float16, not float64"
    return None


def _choose_backend(backend: str | None, u: Tensor) -> str:
    forced = backend or os.environ.get("VISIONSSM_BACKEND") or None
    if forced is None:
        if u.device.type != "cuda":
            return "portable"
        reason = _why_no_triton("cuda", u.dtype)
        if reason is None:
            return "triton"
        if reason not in _told:
            _told.add(reason)
            _logger.warning("selective_scan falls back to the portable implementation on %s: %s", u.device, reason)
        return "portable"
    if forced not in _BACKENDS:
        where = "backend" if backend else "VISIONSSM_BACKEND"
        raise ValueError(f"unknown {where} {forced!r}; expected one of {', '.join(_BACKENDS)}")
    if forced == "triton":
        reason = _why_no_triton(u.device.type, u.dtype)
        if reason is not None:
            raise RuntimeError(
                f"the Triton backend cannot run on {u.device}: {reason}; "
                "use backend='portable' or unset VISIONSSM_BACKEND"
            )
    return forced


def _implementation(backend: str):
    # triton is imported by the first call that needs it: it exists on few platforms
    return import_module(f"{__package__}.triton") if backend == "triton" else portable


_library = torch.library.Library("visionssm", "DEF")
_SCAN = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor? C, Tensor? D, Tensor? delta_bias, Tensor? dt_weight, "
    "Tensor? order, SymInt num_tokens, bool u_by_step, bool by_step, str out, ScalarType out_dtype, str backend"
)
_library.define(f"selective_scan({_SCAN}, bool save) -> (Tensor, Tensor)")
_library.define(
    f"selective_scan_backward(Tensor grad, Tensor states, {_SCAN}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward(*args):
    scan, (backend, save) = Scan(*args[:14]), args[14:]
    out, states = _implementation(backend).forward(scan, save)
    return out, scan.u.new_empty(0) if states is None else states


def _forward_fake(*args):
    scan, (backend, save) = Scan(*args[:14]), args[14:]
    out = scan.u.new_empty(scan.out_shape, dtype=scan.out_dtype)
    if not save:
        return out, scan.u.new_empty(0)
    return out, scan.u.new_empty(_implementation(backend).states_shape(scan), dtype=scan.compute_dtype)


def _backward(grad, states, *args):
    scan, backend = Scan(*args[:14]), args[14]
    grads = _implementation(backend).backward(grad, states, scan)
    return tuple(scan.u.new_empty(0) if g is None else g for g in grads)


def _backward_fake(grad, states, *args):
    scan = Scan(*args[:14])
    return tuple(
        scan.u.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in scan[:8]
    )


def _setup_context(ctx, inputs, output):
    scan = Scan(*inputs[:14])
    ctx.backend = inputs[14]
    ctx.rest = tuple(scan[9:])
    ctx.save_for_backward(output[1], *scan[:9])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad, _):
    if grad is None:
        return (None,) * 16
    states, *tensors = ctx.saved_tensors
    grads = torch.ops.visionssm.selective_scan_backward(grad, states, *tensors, *ctx.rest, ctx.backend)
    needed = zip(grads, tensors, ctx.needs_input_grad, strict=False)
    return *(g if t is not None and need else None for g, t, need in needed), *(None,) * 8


_library.impl("selective_scan", _forward, "CompositeExplicitAutograd")
_library.impl("selective_scan_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("visionssm::selective_scan", _forward_fake, lib=_library)
torch.library.register_fake("visionssm::selective_scan_backward", _backward_fake, lib=_library)
torch.library.register_autograd("visionssm::selective_scan", _autograd, setup_context=_setup_context, lib=_library)


@torch._decomp.register_decomposition(torch.ops.visionssm.selective_scan.default)
def _decompose(*args):
    """What the ONNX exporter puts in the place of the operator."""
    scan = Scan(*args[:14])
    return selective_scan_doubling(scan), scan.u.new_empty(0)
