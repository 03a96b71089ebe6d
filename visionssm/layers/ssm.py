"""The state-space part of a mixer: parameters of all routes, and one scan over all of them."""

from functools import lru_cache, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._timm_compat import register_notrace_function
from ..ops import selective_scan
from .mixer_init import init_a_log_, init_dt_bias_, init_dt_weight_, init_projection_


@register_notrace_function  # fx cannot follow a decision on a dtype
def state_dtype(parameter: Tensor) -> Tensor:
    """`parameter` in the dtype the scan keeps its state in: float32, or float64 for a float64 model."""
    return parameter if parameter.dtype == torch.float64 else parameter.float()


class SelectiveSSM(nn.Module):
    """Selective state-space model over `routes` routes, each with its own parameters (Mamba, arXiv:2312.00752).

    delta, B and C are projected from the unpermuted tokens, for all routes in one matrix product: a pointwise
    projection commutes with reordering, so the order of each route is left to the scan.

    Args:
        dim: Channels d of the scanned tokens.
        routes: Number of routes k; scan tables given to `forward` must have as many rows.
        d_state: States N per channel.
        dt_rank: Rank R of the step size's projection.
        shared_input: All routes read the same tokens; else the input has a route axis.
        dt_bias_scale: How often the bias of the step size counts; 2 where the original adds it twice.
    """

    route_parameters = ("x_proj_weight", "dt_weight", "dt_bias", "A_log", "D")

    def __init__(
        self,
        dim: int,
        routes: int,
        d_state: int,
        dt_rank: int,
        shared_input: bool = True,
        dt_bias_scale: int = 1,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.routes = self.table_rows = routes
        self.kept: tuple[int, ...] | None = None  # rows of the table that are scanned, where routes were removed
        # what a rewritten or quantised model has here: a shift of the low-rank step size (k, R), and roundings
        self.register_buffer("delta_shift", None)
        self.input_quantizer: nn.Module | None = None
        self.delta_quantizer: nn.Module | None = None
        self.shared_input = shared_input
        self.dt_bias_scale = dt_bias_scale
        self.splits = (dt_rank, d_state, d_state)
        self.x_proj_weight = nn.Parameter(torch.empty(routes, sum(self.splits), dim, **dd))
        self.dt_weight = nn.Parameter(torch.empty(routes, dim, dt_rank, **dd))
        self.dt_bias = nn.Parameter(torch.empty(routes, dim, **dd))
        self.A_log = nn.Parameter(torch.empty(routes, dim, d_state, **dd))
        self.D = nn.Parameter(torch.empty(routes, dim, **dd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as Mamba does."""
        init_projection_(self.x_proj_weight)
        init_dt_weight_(self.dt_weight)
        init_dt_bias_(self.dt_bias)
        init_a_log_(self.A_log)
        nn.init.ones_(self.D)

    def rows(self, order: Tensor | None) -> Tensor | None:
        """The rows of a scan table (routes, T) that are scanned: all, unless routes were removed."""
        if self.kept is None or order is None:
            return order
        if torch.compiler.is_compiling() or order.is_meta:
            return order[list(self.kept)]
        return _rows(order, self.kept)

    def project(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Low-rank step size, B and C of each route, (b, L, k, R or N), of tokens (b, L, d) or (b, L, k, d)."""
        if self.input_quantizer is not None:
            u = self.input_quantizer(u)
        if self.shared_input:
            projected = F.linear(u, self.x_proj_weight.flatten(0, 1)).unflatten(-1, (self.routes, sum(self.splits)))
        else:
            projected = torch.einsum("blkd,kod->blko", u, self.x_proj_weight)
        delta, b, c = projected.split(self.splits, dim=-1)
        if self.delta_shift is not None:
            delta = delta - self.delta_shift
        if self.delta_quantizer is not None:
            delta = self.delta_quantizer(delta)
        return delta, b, c

    def forward(
        self,
        u: Tensor,
        order: Tensor | None = None,
        *,
        num_tokens: int | None = None,
        by_step: bool = False,
        out: str = "sum",
    ) -> Tensor:
        """Scan the tokens.

        Args:
            u: (b, L, d), or (b, L, k, d) if the input is not shared; with `by_step` (b, T, k, d), stored by scan step.
            order: Scan table (k, T), see `visionssm.ops.selective_scan`.
            num_tokens: L, needed with `by_step`.
            by_step: u is stored by scan step, not by token.
            out: "sum" (b, L, d), "route" (b, L, k, d) or "step" (b, T, k, d).

        Returns:
            The output in the parameters' dtype, hence float32 under autocast: routes are summed in float32.
        """
        order = self.rows(order)
        filled = self.delta_shift is not None and order is not None and not by_step
        if filled:  # a step that reads no token has a shift too: it reads a token of zeros
            num_tokens = u.shape[1] + 1
            u = torch.cat([u, torch.zeros_like(u[:, :1])], 1)
            order = _filled(order, num_tokens - 1)
        delta, b, c = self.project(u)
        index = "step" if by_step else "token"
        y = selective_scan(
            u,
            delta,
            -torch.exp(state_dtype(self.A_log)),
            b,
            c,
            state_dtype(self.D),
            self.step_bias(),
            dt_weight=self.dt_weight,
            order=order,
            num_tokens=num_tokens,
            u_index=index,
            index=index,
            out=out,
            out_dtype=self.D.dtype,
        )
        return y[:, :-1] if filled and out != "step" else y

    def step_bias(self) -> Tensor:
        """The bias of the step size, as often as it counts, (k, d)."""
        bias = state_dtype(self.dt_bias)
        # added, not multiplied: torch.onnx can trip over a number times a parameter once other libraries are loaded
        return reduce(torch.add, [bias] * self.dt_bias_scale)

    def scan_kept(self, u: Tensor, skipped: Tensor) -> Tensor:
        """Scan tokens of a longer sequence, with a state that decays over those left out (ToP-ViM, arXiv:2409.18962).

        What was left out counts as a token without features: its step size is softplus of the bias, as for steps of a
        table that read -1, and of the shift of a rewritten model.

        Args:
            u: Tokens by step (b, T, k, d).
            skipped: Number of tokens left out since the step before (b, T, k).

        Returns:
            By step (b, T, k, d), in the parameters' dtype.
        """
        delta, b, c = self.project(u)
        bias = self.step_bias()
        delta = F.softplus(state_dtype(torch.einsum("blkr,kdr->blkd", delta, self.dt_weight)) + bias)
        if self.delta_shift is not None:
            bias = bias - state_dtype(torch.einsum("kdr,kr->kd", self.dt_weight, self.delta_shift))
        total = delta + skipped.unsqueeze(-1) * F.softplus(bias)
        y = selective_scan(
            u * (delta / total).to(u.dtype),
            total,
            -torch.exp(state_dtype(self.A_log)),
            b,
            c,
            delta_softplus=False,
            u_index="step",
            index="step",
            num_tokens=u.shape[1],
            out="step",
            out_dtype=self.D.dtype,
        )
        return y + self.D * u


def _filled(order: Tensor, token: int) -> Tensor:
    """A scan table whose empty steps read a token."""
    if torch.compiler.is_compiling() or order.is_meta:
        return order.masked_fill(order < 0, token)
    return _filled_once(order, token)


@lru_cache(maxsize=64)
def _filled_once(order: Tensor, token: int) -> Tensor:
    return order.masked_fill(order < 0, token)


@lru_cache(maxsize=64)
def _rows(order: Tensor, kept: tuple[int, ...]) -> Tensor:
    """One object for each table, as the operators know tables by their objects."""
    return order[list(kept)]
