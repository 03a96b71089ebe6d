"""The public function."""

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from ..tables import check_table
from .backends import choose_backend
from .contract import canonical
from .derivatives import needs_formula
from .registration import scan_op


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
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    delta_softplus: bool = True,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan along one or several routes over the same tokens (Mamba, arXiv:2312.00752, section 3.2).

    For batch b, route k, channel d and scan step t, with float32 state (float64 for float64 inputs):

        delta = softplus(delta_raw + delta_bias), or without the softplus
        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
        y_t = C_t . h_t + D u_t

    L is the number of tokens, T the number of scan steps. Tensors without a route axis are shared by all routes. An
    empty batch gives an empty output.

    A sequence can be scanned in pieces: each begins from the last state of the one before, `initial_state`, and the
    outputs and gradients are those of the whole.

    First derivatives in reverse (`backward`, `torch.autograd.grad`) have kernels of their own. Whatever goes further, a
    second derivative (`create_graph=True`), a tangent (`torch.func.jvp`, `torch.autograd.forward_ad`) and the
    transforms of `torch.func` but `vmap` alone, goes through a formula of PyTorch's operators on every backend: right,
    but several times slower, and it keeps some ten tensors of (b, T, k, d, N).

    A compiled or exported program holds no choice of a backend but the one asked for by `backend`: the others are
    chosen anew where and when the program runs.

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
        initial_state: State before the first step, (b, [k,] d, N), dtype of A; zeros if None.
        return_last_state: Also return the state after the last step.
        delta_softplus: Take the softplus of the step size; else it is taken as it is.
        backend: "triton", "native", "portable" or "reference"; None reads the environment variable VISIONSSM_BACKEND
            and else takes Triton on GPUs, the native library on CPUs where it was compiled, and the portable
            implementation anywhere else and for float64.

    Returns:
        The output in the shape that `out` says; with `return_last_state` a pair of it and the last state, (b, k, d, N)
        in the dtype of A.

    Raises:
        ValueError: a shape, a device, a choice or a table entry is wrong.
        TypeError: a dtype is wrong.
        RuntimeError: the backend asked for cannot run here.
    """
    tensors = (u, delta, A, B, C, D, delta_bias, dt_weight, initial_state, order)
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
            initial_state=initial_state,
            return_last_state=return_last_state,
            delta_softplus=delta_softplus,
            backend=backend,
        )
    scan = canonical(
        u,
        delta,
        A,
        B,
        C,
        D,
        delta_bias,
        dt_weight,
        order,
        num_tokens,
        u_index,
        index,
        out,
        out_dtype,
        initial_state,
        delta_softplus,
        return_last_state,
    )
    if backend is not None:
        choose_backend(backend, scan.u.device, scan.u.dtype)  # refused here, if at all, by compilers too
    if order is not None and not torch.compiler.is_compiling() and needs_formula(scan.tensors):
        check_table(order, scan.num_tokens)
    exporting = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    save = (
        torch.is_grad_enabled()
        and not exporting  # an exported program that is trained computes its states anew
        and any(t is not None and t.requires_grad for t in scan.tensors)
    )
    result, last, _ = scan_op(*scan, backend or "", save)
    return (result, last) if return_last_state else result
