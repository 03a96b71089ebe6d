"""The two-dimensional selective-scan mixer of VMamba (arXiv:2401.10166, section 4.2)."""

from timm.layers import LayerNorm
from torch import Tensor, nn

from ..scans import num_routes, scan_table
from .linear import split_linear
from .map_conv import MapConv2d
from .ssm import SelectiveSSM


class SS2D(nn.Module):
    """Projection, depthwise convolution, scan of the map along several routes, norm, optional gate, projection.

    Args:
        dim: Channels of the map.
        dim_inner: Channels of the scan.
        d_state: States per channel.
        dt_rank: Rank of the step size's projection.
        scan: Name of the scan order.
        gated: Multiply the normalised output by SiLU of a second projection.
        conv_bias: Bias of the depthwise convolution.
        norm_layer: Norm of the merged routes.
        proj_drop: Dropout after the output projection.
        route_gate: Merges the routes (b, L, k, dim_inner) to (b, L, dim_inner); they are summed if None.
    """

    route_parameters = ()

    def __init__(
        self,
        dim: int,
        dim_inner: int,
        d_state: int,
        dt_rank: int,
        scan: str = "cross",
        gated: bool = False,
        conv_bias: bool = False,
        norm_layer: type[nn.Module] = LayerNorm,
        proj_drop: float = 0.0,
        route_gate: nn.Module | None = None,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.scan = scan
        self.gated = gated
        self.in_proj = nn.Linear(dim, 2 * dim_inner if gated else dim_inner, bias=False, **dd)
        self.conv = MapConv2d(dim_inner, dim_inner, 3, padding=1, groups=dim_inner, bias=conv_bias, **dd)
        self.act = nn.SiLU()
        self.gate_act: nn.Module = nn.SiLU()
        self.ssm = SelectiveSSM(dim_inner, num_routes(scan), d_state, dt_rank, **dd)
        self.out_norm = norm_layer(dim_inner, **dd)
        self.out_proj = nn.Linear(dim_inner, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.route_gate = route_gate

    @property
    def sums_routes(self) -> bool:
        """Whether routes are merged by addition, so that one can be left out."""
        return self.route_gate is None

    def forward(self, x: Tensor) -> Tensor:
        """Mix a map (b, h, w, dim) of any size; returns the same shape."""
        height, width = x.shape[1], x.shape[2]
        x, z = split_linear(self.in_proj, x) if self.gated else (self.in_proj(x), None)
        x = self.act(self.conv(x))
        order = scan_table(self.scan, height, width, x.device)
        if self.route_gate is None:
            x = self.ssm(x.flatten(1, 2), order)
        else:
            x = self.route_gate(self.ssm(x.flatten(1, 2), order, out="route"))
        x = self.out_norm(x.unflatten(1, (height, width)))
        if z is not None:
            x = x * self.gate_act(z)
        return self.proj_drop(self.out_proj(x))


# names of VMamba's mixer in published files
SS2D_NAMES = (
    (r"\.conv2d\.", ".conv."),
    (r"\.x_proj_weight$", ".ssm.x_proj_weight"),
    (r"\.dt_projs_(weight|bias)$", r".ssm.dt_\1"),
    (r"\.A_logs$", ".ssm.A_log"),
    (r"\.Ds$", ".ssm.D"),
)
