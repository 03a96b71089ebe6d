"""Mamba-ND for images: a plain stack of Mamba's mixers, in which every layer reads the map in the next of four orders.

Paper: Mamba-ND: Selective State Space Modeling for Multi-Dimensional Data, https://arxiv.org/abs/2402.05892
Original code and weights: https://github.com/jacklishufan/Mamba-ND (no licence is stated)

Written from a description of the model; no code of the original. Images of any size work: incomplete patches are filled
with zeros, the position embedding is resampled.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import MambaMixer, PatchEmbed, state_dtype
from ._builder import Kit, Place, build_model, family_cfg
from ._plain import Grid, PlainModel

__all__ = ["MambaND"]

_ORDERS = ("raster", "raster_r180", "vertical", "vertical_r180")


class ChannelMerging(nn.Module):
    """Concatenate 2 x 2 pixels channel by channel, norm, project; odd sizes are padded with zeros first.

    The four pixels of a channel follow each other row by row, which is neither timm's nor Swin's order.

    Args:
        dim: Channels in and out.
        norm_layer: Norm before the projection; it sees the padded zeros too.
    """

    def __init__(self, dim: int, norm_layer: type[nn.Module] = nn.LayerNorm, device=None, dtype=None):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = norm_layer(4 * dim, **dd)
        self.reduction = nn.Linear(4 * dim, dim, bias=False, **dd)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Tokens (b, height * width, dim) to (b, ceil(height / 2) * ceil(width / 2), dim)."""
        x = x.mT.unflatten(2, (height, width))
        x = F.pad(x, (0, width % 2, 0, height % 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3)  # not pixel_unshuffle, which takes no empty batch
        return self.reduction(self.norm(x.flatten(1, 2)))


class MambaNDBlock(nn.Module):
    """x = norm(x), then x + drop_path(mixer(x)): what is not normed is not kept. Perhaps a merging of tokens follows.

    Args:
        norm: Norm of the tokens.
        mixer: Called as mixer(x, height, width).
        drop_path: Rate of stochastic depth.
        downsample: Merges the tokens, called as the mixer; None keeps them.
    """

    def __init__(self, norm: nn.Module, mixer: nn.Module, drop_path: float = 0.0, downsample: nn.Module | None = None):
        super().__init__()
        self.norm = norm
        self.mixer = mixer
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.downsample = downsample

    def forward(
        self,
        x: Tensor,
        height: int,
        width: int,
        with_hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Mix the tokens (b, L, d) of a map of height x width; float32 in and out (float64 for a float64 model).

        Returns:
            The tokens after the block; with `with_hidden`, also the mixer's output before drop path.
        """
        x = self.norm(x.to(self.norm.weight.dtype))
        hidden = self.mixer(x, height, width)
        x = x + self.drop_path(hidden)
        if self.downsample is not None:
            x = self.downsample(x, height, width)
        x = state_dtype(x)
        return (x, state_dtype(hidden)) if with_hidden else x


class MambaND(PlainModel):
    """Mamba-ND for images (arXiv:2402.05892).

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks; the original counts two as a layer.
        patch_size: Side of a patch.
        merge_after: Blocks, counted from 0, that end in a merging of 2 x 2 tokens.
        d_state: States per channel of the scan.
        d_conv: Taps of the convolution along the scan order.
        expand: Channels of the scan over channels of the tokens.
        scan: Scan orders of the blocks, which take turns, see `visionssm.scans`; a single name is that of all blocks.
        pos_drop_rate: Dropout after the position embedding.
        **shared: Further arguments of `PlainModel`.

    Raises:
        ValueError: a merging after a block that there is not, or no scan order.
    """

    # D and biases were vectors there, here they are (1, channels); A_log was decayed at a tenth of the rate
    undecayed = ("pos_embed", ".ssm.A_log", ".ssm.D", ".ssm.dt_bias", ".mixer.conv_bias")
    unused = ("act_layer", "feature_stream", "shuffle_rate")
    linear_std = None
    layout = Layout(
        own=r"^blocks\.\d+\.mixer\.conv_weight$",
        tell_tale=(r"^backbone\.layers\.\d+\.mixer\.conv1d\.weight$", r"^backbone\.ln2\.weight$"),
        names=(
            (r"^backbone\.", ""),
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.(\d+)\.down_sample_layer\.", r"blocks.\1.downsample."),
            (r"^layers\.(\d+)\.mixer\.(A_log|D)$", r"blocks.\1.mixer.ssm.\2"),
            (r"^layers\.(\d+)\.mixer\.x_proj\.weight$", r"blocks.\1.mixer.ssm.x_proj_weight"),
            (r"^layers\.(\d+)\.mixer\.dt_proj\.(weight|bias)$", r"blocks.\1.mixer.ssm.dt_\2"),
            (r"^layers\.(\d+)\.mixer\.conv1d\.(weight|bias)$", r"blocks.\1.mixer.conv_\2"),
            (r"^layers\.", "blocks."),
            (r"^ln1\.", "norm."),
            (r"^ln2\.", "fc_norm."),
            (r"^head\.fc\.", "head."),
        ),
    )

    def __init__(
        self,
        embed_dim: int = 384,
        depth: int = 24,
        patch_size: int = 8,
        merge_after: Collection[int] = (9,),
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan: str | Sequence[str] = _ORDERS,
        pos_drop_rate: float = 0.0,
        **shared: Any,
    ):
        scans = (scan,) if isinstance(scan, str) else tuple(scan)
        if not scans:
            raise ValueError("scan must be a name or a sequence of names, got an empty sequence")
        if not set(merge_after) <= set(range(depth)):
            raise ValueError(f"merge_after must be numbers of blocks, from 0 to {depth - 1}, got {list(merge_after)}")

        def block(place: Place, kit: Kit) -> MambaNDBlock:
            dim, dd = place.dim, kit.dd
            merging = ChannelMerging(dim, kit.norm_layer, **dd) if place.index in merge_after else None
            scan = scans[place.index % len(scans)]
            mixer = MambaMixer(dim, scan, d_state, d_conv, expand, proj_drop=kit.proj_drop, **dd)
            return MambaNDBlock(kit.norm_layer(dim, **dd), mixer, place.drop_path, merging)

        super().__init__(
            embed_dim,
            depth,
            patch_embed=lambda in_chans, dim, kit: PatchEmbed(in_chans, dim, patch_size, pad=True, **kit.dd),
            block=block,
            final_norm=lambda dim, **dd: nn.LayerNorm(dim, eps=1e-6, **dd),
            **shared,
        )
        self.scan = scan
        for i, info in enumerate(self.feature_info):
            info["reduction"] *= 2 ** sum(merged <= i for merged in merge_after)
        self.pos_drop = nn.Dropout(pos_drop_rate)
        self.fc_norm = nn.LayerNorm(embed_dim, eps=1e-6, device=self.pos_embed.device, dtype=self.pos_embed.dtype)

    def init_own_weights(self, mode: str) -> None:
        """Position embedding and classifier; the patches begin as any convolution."""
        super().init_own_weights(mode)
        self.patch_embed.proj.reset_parameters()
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=2e-5)
            nn.init.zeros_(self.head.bias)

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Images (b, c, h, w) to the first tokens (b, L, d), and to the grid of their patches."""
        x, grid = super().embed(x)
        return self.pos_drop(x), grid

    def grid_after(self, index: int, grid: Grid) -> Grid:
        """The grid of the tokens that a block leaves."""
        if self.blocks[index].downsample is None:
            return grid
        return grid._replace(height=-(-grid.height // 2), width=-(-grid.width // 2))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, norm and classify; with `pre_logits`, only pool and norm."""
        x = self.head_drop(self.fc_norm(self.pool(x)))
        return x if pre_logits else self.head(x)


_cfg = family_cfg(
    license="unknown",
    origin_url="https://github.com/jacklishufan/Mamba-ND",
    paper_name="Mamba-ND: Selective State Space Modeling for Multi-Dimensional Data",
    paper_ids="arXiv:2402.05892",
    first_conv="patch_embed.proj",
    classifier="head",
)
_HUB = "jacklishufan/Mamba-ND"

default_cfgs = generate_default_cfgs(
    {
        "mamband_small.in1k": _cfg(hf_hub_id=_HUB, hf_hub_filename="in1k/mamba2d_s.pth"),
        "mamband_base.in1k": _cfg(hf_hub_id=_HUB, hf_hub_filename="in1k/mamba2d_b.pth"),
        "test_mamband.untrained": _cfg(license="apache-2.0", input_size=(3, 64, 64)),
    }
)


@register_model
def mamband_small(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """Mamba2D-S/8."""
    return build_model(MambaND, "mamband_small", pretrained, kwargs, embed_dim=384)


@register_model
def mamband_base(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """Mamba2D-B/8."""
    return build_model(MambaND, "mamband_base", pretrained, kwargs, embed_dim=768)


@register_model
def test_mamband(pretrained: bool = False, **kwargs: Any) -> MambaND:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(img_size=64, embed_dim=48, depth=4, merge_after=(1,), d_state=8)
    return build_model(MambaND, "test_mamband", pretrained, kwargs, **args)
