"""The mixer of LocalVMamba (arXiv:2403.09338): VMamba's, with gated routes."""

from timm.layers import LayerNorm
from torch import Tensor, nn

from .route_gate import RouteGate
from .ss2d import SS2D


class LocalSS2D(SS2D):
    """A gated `SS2D` whose routes are weighted channel by channel before they are summed; arguments as there."""

    def __init__(
        self,
        dim: int,
        dim_inner: int,
        d_state: int,
        dt_rank: int,
        scan: str,
        norm_layer: type[nn.Module] = LayerNorm,
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            dim_inner,
            d_state,
            dt_rank,
            scan,
            gated=True,
            conv_bias=True,
            norm_layer=norm_layer,
            proj_drop=proj_drop,
            **dd,
        )
        self.route_gate = RouteGate(dim_inner, norm_layer=norm_layer, **dd)

    def _scan(self, x: Tensor, order: Tensor) -> Tensor:
        return self.route_gate(self.ssm(x, order, out="route"))
