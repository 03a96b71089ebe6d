"""Vision Hydra: a plain model whose mixer multiplies the tokens by a quasi-separable matrix, read in both directions.

Paper: Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers, https://arxiv.org/abs/2407.09941
Original code: https://github.com/goombalab/hydra (MIT); it has the mixer, and neither a vision model nor its weights.

The mixer is the original's. The model around it is ours: the paper says that attention in a ViT-Base is replaced by the
mixer, and leaves open how the tokens are ordered, how many blocks there are and how their output is pooled. Here they
are read row by row by two mixers for each layer of the ViT, without MLP, on a pre-norm residual stream, and averaged.
Images of any size from a patch on work: the position embedding is resampled.
"""

from typing import Any

import torch
from timm.layers import RmsNorm, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import PatchEmbed, StreamBlock, init_dt_bias_, state_dtype
from ..ops import quasi_separable_ssd
from ..scans import inverse_table, num_routes, scan_table
from ._builder import Kit, Place, build_model, family_cfg
from ._plain import PlainModel

__all__ = ["Hydra", "HydraMixer"]


class HydraMixer(nn.Module):
    """Projection, centred convolution, quasi-separable mixing of the tokens, norm, gate, projection (section 3).

    Args:
        dim: Channels of the tokens.
        d_state: States per head and direction.
        d_conv: Taps of the convolution along the tokens, odd.
        expand: Channels that are mixed over channels of the tokens.
        head_dim: Channels of a head; every head has one decay.
        groups: Groups of heads that share B and C.
        scan: Name of the scan order. Several routes share all parameters, and the mean of what they mix is normed; the
            original knows the order of the sequence only, "raster".
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: the channels do not divide into heads, or these into groups; the number of taps is even; or the scan
            order does not visit every token once.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 64,
        d_conv: int = 7,
        expand: int = 2,
        head_dim: int = 64,
        groups: int = 1,
        scan: str = "raster",
        proj_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        dim_inner = expand * dim
        heads, rest = divmod(dim_inner, head_dim)
        if rest or heads % groups:
            raise ValueError(
                f"{dim_inner} channels must divide into heads of {head_dim}, and these into {groups} groups; choose "
                "another head_dim or groups"
            )
        if d_conv % 2 == 0:
            raise ValueError(f"d_conv must be odd, as the convolution is centred, got {d_conv}")
        _check_permutation(scan)
        self.scan = scan
        self.routes = num_routes(scan)
        self.heads, self.groups, self.d_state = heads, groups, d_state
        self.splits = (dim_inner, 4 * groups * d_state)  # what is mixed; B and C of both directions
        conv_dim = sum(self.splits)
        self.in_proj = nn.Linear(dim, dim_inner + conv_dim + 2 * heads, bias=False, **dd)
        self.conv = nn.Conv1d(conv_dim, conv_dim, d_conv, padding=d_conv // 2, groups=conv_dim, **dd)
        self.act = nn.SiLU()
        self.dt_bias = nn.Parameter(torch.empty(heads, **dd))
        self.A_log = nn.Parameter(torch.empty(heads, **dd))
        self.D = nn.Parameter(torch.empty(heads, **dd))
        self.D_proj = nn.Linear(dim_inner, heads, bias=False, **dd)
        self.norm = RmsNorm(dim_inner, eps=1e-5, **dd)
        self.out_proj = nn.Linear(dim_inner, dim, bias=False, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the module's own parameters; both directions begin with the same decays."""
        init_dt_bias_(self.dt_bias)
        nn.init.zeros_(self.A_log)
        nn.init.ones_(self.D)

    def mix(self, xbc: Tensor, dt: Tensor) -> Tensor:
        """Convolve and mix a sequence: (b, L, conv channels) and raw step sizes (b, L, 2 heads) to (b, L, channels)."""
        u, bc = self.act(self.conv(xbc.mT)).mT.split(self.splits, dim=-1)
        bc = bc.unflatten(-1, (2, 2, self.groups, self.d_state))  # directions; B, C
        y = quasi_separable_ssd(
            u.unflatten(-1, (self.heads, -1)),
            dt.unflatten(-1, (2, self.heads)),
            -torch.exp(state_dtype(self.A_log)),
            bc[:, :, :, 0],
            bc[:, :, :, 1],
            self.D + self.D_proj(u),
            state_dtype(self.dt_bias),
        )
        return y.flatten(2)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Mix the tokens (b, L, d) of a map of height x width."""
        dims = (self.splits[0], sum(self.splits), 2 * self.heads)
        z, xbc, dt = self.in_proj(x).split(dims, dim=-1)
        if self.scan == "raster":
            y = self.mix(xbc, dt)
        else:
            order = scan_table(self.scan, height, width, x.device)
            back = inverse_table(self.scan, height, width, x.device)
            routes = (self.mix(xbc[:, order[k]], dt[:, order[k]])[:, back[k]] for k in range(self.routes))
            y = sum(routes) / self.routes
        return self.proj_drop(self.out_proj(self.norm(y.to(self.norm.weight.dtype)) * self.act(z)))


def _check_permutation(scan: str) -> None:
    # on a map whose sides are prime, no window or lattice comes out even
    table = scan_table(scan, 23, 29)
    tokens = torch.arange(23 * 29, device=table.device)
    if table.shape[1] != len(tokens) or not bool((table.sort(dim=1).values == tokens).all()):
        raise ValueError(
            f"Hydra needs a scan order each of whose routes visits every token once, which {scan!r} does not on all "
            "maps; take one without windows, sub-lattices and repetitions, such as 'raster', 'cross' or 'hilbert'"
        )


class Hydra(PlainModel):
    """Vision Hydra (arXiv:2407.09941), of a design of ours where the paper leaves it open.

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        patch_size: Side of a patch.
        d_state: States per head and direction.
        d_conv: Taps of the convolutions along the tokens, odd.
        expand: Channels that are mixed over channels of the tokens.
        head_dim: Channels of a head.
        groups: Groups of heads that share B and C.
        scan: Name of the scan order, see `visionssm.scans`; its routes share all parameters.
        **shared: Further arguments of `PlainModel`.
    """

    undecayed = ("pos_embed", ".dt_bias", ".A_log", ".D")
    unused = ("act_layer",)
    linear_std = None
    layout = Layout(own=r"^blocks\.0\.mixer\.D_proj\.weight$")

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 24,
        patch_size: int = 16,
        d_state: int = 64,
        d_conv: int = 7,
        expand: int = 2,
        head_dim: int = 64,
        groups: int = 1,
        scan: str = "raster",
        **shared: Any,
    ):
        def block(place: Place, kit: Kit) -> StreamBlock:
            mixer = HydraMixer(
                place.dim, d_state, d_conv, expand, head_dim, groups, scan, proj_drop=kit.proj_drop, **kit.dd
            )
            return StreamBlock(kit.norm_layer(place.dim, **kit.dd), mixer, place.drop_path)

        super().__init__(
            embed_dim,
            depth,
            patch_embed=lambda in_chans, dim, kit: PatchEmbed(in_chans, dim, patch_size, **kit.dd),
            block=block,
            **shared,
        )
        self.scan = scan

    def init_own_weights(self, mode: str) -> None:
        """Position embedding and classifier; the last projections are smaller with depth, as in Mamba."""
        super().init_own_weights(mode)
        self.scale_out_proj()
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)


_cfg = family_cfg(
    license="apache-2.0",
    origin_url="https://github.com/goombalab/hydra",
    paper_name="Hydra: Bidirectional State Space Models Through Generalized Matrix Mixers",
    paper_ids="arXiv:2407.09941",
    first_conv="patch_embed.proj",
    classifier="head",
    fixed_input_size=True,
)

default_cfgs = generate_default_cfgs(
    {
        "hydra_base.untrained": _cfg(),
        "test_hydra.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


@register_model
def hydra_base(pretrained: bool = False, **kwargs: Any) -> Hydra:
    """Vision Hydra of the width of a ViT-Base and two mixers for each of its layers; there are no weights."""
    return build_model(Hydra, "hydra_base", pretrained, kwargs)


@register_model
def test_hydra(pretrained: bool = False, **kwargs: Any) -> Hydra:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(img_size=64, embed_dim=48, depth=4, d_state=8, head_dim=16)
    return build_model(Hydra, "test_hydra", pretrained, kwargs, **args)
