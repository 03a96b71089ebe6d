"""What the models with Vim's mixer share: plain, scanned forwards and backwards, tokens beside the patches."""

from typing import Any

from timm.layers import trunc_normal_
from torch import nn

from ..layers import BidirectionalMixer, PatchEmbed, StreamBlock
from ..scans import check_scan
from ._builder import Kit, Place
from ._plain import PlainModel

# the two directions' parameters in published files, by the name of the stacked one; see `Layout.stack`
DIRECTIONS = {
    "conv_weight": ("conv1d.weight", "conv1d_b.weight"),
    "conv_bias": ("conv1d.bias", "conv1d_b.bias"),
    "ssm.x_proj_weight": ("x_proj.weight", "x_proj_b.weight"),
    "ssm.dt_weight": ("dt_proj.weight", "dt_proj_b.weight"),
    "ssm.dt_bias": ("dt_proj.bias", "dt_proj_b.bias"),
    "ssm.A_log": ("A_log", "A_b_log"),
    "ssm.D": ("D", "D_b"),
}
NAMES = ((r"^layers\.", "blocks."), (r"^norm_f\.", "norm."))


class BidirectionalModel(PlainModel):
    """Base of the models with Vim's mixer.

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        patch_size: Side of a patch.
        stride: Distance of neighbouring patches; `patch_size` if None.
        d_state: States per channel of the scan.
        d_conv: Taps of the causal convolutions.
        expand: Channels of the scan over channels of the tokens.
        scan: Name of the scan order; each of its routes has its own parameters.
        average: Merge the routes by their mean, not their sum.
        extra_tokens: Number and place of the tokens beside the patches.
        **shared: Further arguments of `PlainModel`.
    """

    # in the originals D and the biases of each direction are vectors, here they are (routes, channels); A_log was
    # marked but decayed all the same
    undecayed = ("cls_token", "pos_embed", ".ssm.D", ".ssm.dt_bias", ".conv_bias")
    unused = ("act_layer",)
    prunes_tokens = True
    linear_std = None

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        *,
        patch_size: int = 16,
        stride: int | None = None,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan: str = "bidirectional",
        average: bool = True,
        extra_tokens: tuple[int, str] = (0, "middle"),
        **shared: Any,
    ):
        check_scan(scan)

        def block(place: Place, kit: Kit) -> StreamBlock:
            mixer = BidirectionalMixer(
                place.dim,
                scan,
                d_state,
                d_conv,
                expand,
                extra_tokens,
                average=average,
                proj_drop=kit.proj_drop,
                **kit.dd,
            )
            return StreamBlock(kit.norm_layer(place.dim, **kit.dd), mixer, place.drop_path)

        super().__init__(
            embed_dim,
            depth,
            patch_embed=lambda in_chans, dim, kit: PatchEmbed(in_chans, dim, patch_size, stride, **kit.dd),
            block=block,
            extra_tokens=extra_tokens,
            **shared,
        )
        self.scan = scan

    def init_own_weights(self, mode: str) -> None:
        """As the originals, which lose the initial step size of the backward direction; here both have it."""
        super().init_own_weights(mode)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)
        self.scale_out_proj()
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)
