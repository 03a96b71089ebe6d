"""The mixer of LocalVim (arXiv:2403.09338): Vim's, with gated routes."""

from functools import partial

from timm.layers import LayerNorm
from torch import Tensor

from .route_gate import RouteGate
from .route_mixer import RouteMixer


class LocalRouteMixer(RouteMixer):
    """`RouteMixer` whose routes are weighted channel by channel before they are summed; arguments as there."""

    def __init__(
        self,
        dim: int,
        scan: str,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        with_middle_token: bool = False,
        proj_drop: float = 0.0,
        norm_eps: float = 1e-5,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(dim, scan, d_state, d_conv, expand, with_middle_token, proj_drop=proj_drop, **dd)
        self.route_gate = RouteGate(expand * dim, norm_layer=partial(LayerNorm, eps=norm_eps), **dd)

    def merge(self, u: Tensor, gate: Tensor, order: Tensor) -> Tensor:
        """Scan, gate, weight and sum the routes; shapes as in `RouteMixer`."""
        y = self.ssm(u, order, num_tokens=gate.shape[1], by_step=True, out="route")
        return self.route_gate(y * gate.unsqueeze(2))
