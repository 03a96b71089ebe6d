"""LocalMamba: scans along rows, columns and within windows, chosen for each block by a search.

Paper: LocalMamba: Visual State Space Model with Windowed Selective Scan, https://arxiv.org/abs/2403.09338
Original code and weights: https://github.com/hunto/LocalMamba (Apache-2.0)

LocalVMamba is hierarchical, LocalVim is plain. Routes are gated channel by channel before they are summed.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, apply_rot_embed, build_rotary_pos_embed, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import CheckpointError, Layout, Refusal, shifted
from ..layers import (
    SS2D,
    MambaMixer,
    PatchEmbed,
    PatchMerging,
    PatchStem,
    ResidualBlock,
    StreamBlock,
    resample_pos_embed,
)
from ..scans import check_scan
from ._builder import Kit, Place, build_model, family_cfg
from ._hierarchical import HierarchicalModel
from ._plain import Grid, PlainModel

__all__ = ["LocalVMamba", "LocalVim"]


def scan_names(directions: str) -> tuple[str, ...]:
    """Names of scan orders, one for each line of the original's codes: h, v, w2, w7, reversed with _flip."""
    names = {"h": "raster", "v": "vertical", "w": "window"}
    return tuple("+".join(names[code[0]] + code[1:] for code in line.split()) for line in directions.splitlines())


_LOCALVMAMBA_TINY = scan_names("""\
h h_flip w7 w7_flip
h_flip v_flip w2 w2_flip
h_flip v_flip w2_flip w7
h_flip v v_flip w2
h h_flip v_flip w2_flip
h_flip v_flip w2 w2_flip
h w2_flip w7 w7_flip
h h_flip v v_flip
h v_flip w7 w7_flip
h_flip v w2 w7_flip
v v_flip w2 w7_flip
h h_flip v_flip w2_flip
v_flip w2_flip w7 w7_flip
h_flip v_flip w2_flip w7_flip
h_flip v w7 w7_flip""")

_LOCALVMAMBA_SMALL = scan_names("""\
h v v_flip w7_flip
h h_flip v w7
h_flip v v_flip w7
h_flip v w2_flip w7
h_flip v w2_flip w7
h_flip v_flip w2 w7_flip
h_flip v v_flip w7
h v v_flip w7
h v v_flip w7
h v v_flip w7_flip
h h_flip v v_flip
h v v_flip w2
v v_flip w2_flip w7
h h_flip v w2
h_flip v v_flip w7_flip
h h_flip v v_flip
h v v_flip w7_flip
h v v_flip w7_flip
h h_flip v_flip w7
h_flip v_flip w2_flip w7
h_flip v v_flip w7_flip
v v_flip w7 w7_flip
h v v_flip w7_flip
h_flip v v_flip w2
h v v_flip w2_flip
h h_flip v w7
h h_flip w7 w7_flip
h v_flip w2 w2_flip
h v_flip w2 w7
h v v_flip w7_flip
h_flip v w2_flip w7
h_flip v_flip w7 w7_flip
h v w7 w7_flip""")

_LOCALVIM = scan_names("""\
h v_flip w7 w7_flip
h_flip w2_flip w7 w7_flip
h h_flip v w7
h h_flip v v_flip
h h_flip v v_flip
h h_flip v v_flip
h_flip v v_flip w7
h_flip v v_flip w2_flip
h h_flip v v_flip
h h_flip v v_flip
h v v_flip w2
h v v_flip w2_flip
h h_flip v_flip w7
h_flip v v_flip w2
h h_flip v v_flip
h v w2 w2_flip
v v_flip w2 w7
h h_flip v w2
h h_flip w2_flip w7
v v_flip w2 w2_flip""")

_NOT_SEARCHED = "raster+raster_flip+window2+window2_flip"


def _scan_of_each_block(scan: str | Sequence[str], depth: int) -> list[str]:
    scans = [scan] * depth if isinstance(scan, str) else list(scan)
    for name in scans:
        check_scan(name)
    if len(scans) != depth:
        raise ValueError(
            f"scan must be one name for all blocks or a list of {depth}, one for each block; got {len(scans)} names"
        )
    return scans


class RouteGate(nn.Module):
    """Gate the channels of each route by the mean of its tokens, then sum the routes.

    All routes share the parameters, but each is gated by its own mean. As in the published models there is no gate
    over positions.

    Args:
        dim: Channels.
        reduction: Channels over hidden channels of the gate.
        norm_layer: Norm over channels before the mean.
    """

    def __init__(
        self,
        dim: int,
        reduction: int = 8,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = norm_layer(dim, **dd)
        self.reduce = nn.Linear(dim, dim // reduction, **dd)
        self.expand = nn.Linear(dim // reduction, dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Routes by token (b, L, k, dim) to merged tokens (b, L, dim)."""
        gate = self.expand(F.gelu(self.reduce(self.norm(x).mean(1)))).sigmoid()
        return (x * gate.unsqueeze(1)).sum(2)


_REFERENCE_SIDE = 14  # positions run from 0 to 14 along each side, whatever its number of patches


class RotaryTables(nn.Module):
    """Sines and cosines to rotate tokens by: first half of the channels by row, second half by column.

    They are computed for one grid. As in the published models, the tables of another grid are those resampled
    bicubically.

    Args:
        dim: Channels of the tokens, a multiple of 4.
        grid_size: Rows and columns of the map that the tables are computed for.
    """

    def __init__(self, dim: int, grid_size: tuple[int, int], device=None):
        super().__init__()
        if dim % 4:
            raise ValueError(f"a rotary embedding in two dimensions needs a multiple of 4 channels, got {dim}")
        self.dim = dim
        self.grid_size = tuple(grid_size)
        # float32 whatever the model's dtype, like the stream that they rotate
        shape = 1, grid_size[0] * grid_size[1], dim
        self.register_buffer("sin", torch.empty(shape, device=device), persistent=False)
        self.register_buffer("cos", torch.empty(shape, device=device), persistent=False)
        self.init_non_persistent_buffers()

    def reset_parameters(self) -> None:
        """Compute the tables, as for weights that were made without memory."""
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """Compute the tables where they are."""
        sin, cos = build_rotary_pos_embed(
            list(self.grid_size),
            dim=self.dim,
            in_pixels=False,
            ref_feat_shape=[_REFERENCE_SIDE] * 2,
            device=self.sin.device,
        )
        self.sin.copy_(sin)
        self.cos.copy_(cos)

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Sines and cosines (1, height * width, dim) for a map of height x width."""
        grid = (height, width)
        return tuple(resample_pos_embed(t, self.grid_size, grid) for t in (self.sin, self.cos))


_SEARCHING = Refusal(
    r"multi_scan\.weights$",
    "the checkpoint is a LocalMamba network that searches scan directions (it has multi_scan.weights: all eight "
    "directions in every block); expected a network trained with chosen ones",
)
_GATE_NAMES = (
    (r"\.route_gate\.global_reduce\.", ".route_gate.reduce."),
    (r"\.route_gate\.channel_select\.", ".route_gate.expand."),
)


class LocalVMamba(HierarchicalModel):
    """LocalVMamba (arXiv:2403.09338).

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        d_state: States per channel of the scan.
        ssm_ratio: Channels of the scan over channels of the block.
        scan: Name of the scan order of all blocks, or one name for each block, counted over the stages; see
            `visionssm.scans`. Each route has its own parameters.
        **shared: Further arguments of `HierarchicalModel`.
    """

    # there the skip weights D were vectors, here they are (routes, channels); the rest was decayed
    undecayed = (".ssm.D",)
    unused = ("act_layer",)
    layout = Layout(
        own=r"^stem\.conv\.weight$",
        former=((r"^(stages\.\d+\.blocks\.\d+)\.norm\.", r"\1.norm1."),),
        tell_tale=(
            r"(^|\.)layers\.\d+\.blocks\.\d+\.op\.x_proj_weight$",
            r"(^|\.)layers\.\d+\.blocks\.\d+\.op\.(multi_scan|.*attn\.)",
        ),
        names=(
            (r"^patch_embed\.0\.", "stem.conv."),
            (r"^patch_embed\.2\.", "stem.norm."),
            (r"^layers\.(\d+)\.downsample\.", shifted("stages.{}.downsample.")),
            (r"^layers\.(\d+)\.blocks\.(\d+)\.op\.", r"stages.\1.blocks.\2.mixer."),
            (r"^layers\.(\d+)\.blocks\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm1."),
            (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
            (r"\.mixer\.conv2d\.", ".mixer.conv."),
            (r"\.mixer\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
            (r"\.mixer\.dt_projs_weight$", ".mixer.ssm.dt_weight"),
            (r"\.mixer\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
            (r"\.mixer\.A_logs$", ".mixer.ssm.A_log"),
            (r"\.mixer\.Ds$", ".mixer.ssm.D"),
            (r"\.multi_scan\.attn\.", ".route_gate."),
            *_GATE_NAMES,
            (r"^classifier\.norm\.", "norm."),
            (r"^classifier\.head\.", "head.fc."),
        ),
        refuse=(_SEARCHING,),
    )

    def __init__(
        self,
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 9, 2),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        scan: str | Sequence[str] = _LOCALVMAMBA_TINY,
        **shared: Any,
    ):
        scans = _scan_of_each_block(scan, sum(depths))

        def block(place: Place, kit: Kit) -> ResidualBlock:
            dim, inner, dd = place.dim, int(ssm_ratio * place.dim), kit.dd
            mixer = SS2D(
                dim,
                inner,
                d_state,
                dt_rank=math.ceil(dim / 16),
                scan=scans[place.index],
                gated=True,
                conv_bias=True,
                norm_layer=kit.norm_layer,
                proj_drop=kit.proj_drop,
                route_gate=RouteGate(inner, norm_layer=kit.norm_layer, **dd),
                **dd,
            )
            return ResidualBlock(kit.norm_layer(dim, **dd), mixer, drop_path=place.drop_path)

        super().__init__(
            dims,
            depths,
            stem=lambda in_chans, dim, kit: PatchStem(in_chans, dim, norm_layer=kit.norm_layer, **kit.dd),
            downsample=lambda dim, dim_out, kit: PatchMerging(dim, dim_out, kit.norm_layer, **kit.dd),
            block=block,
            **shared,
        )
        self.scan = scan


class LocalVim(PlainModel):
    """LocalVim (arXiv:2403.09338); images of any size work.

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        patch_size: Side of a patch; images are padded with zeros to a multiple of it.
        d_state: States per channel of the scan.
        d_conv: Taps of the causal convolutions.
        expand: Channels of the scan over channels of the tokens.
        class_token: Put a class token in the middle of the patch tokens.
        rope_size: Size of the image that the rotary tables are computed for; other sizes resample the tables. 0 for no
            rotary embedding, which a class token needs.
        scan: Name of the scan order of all blocks, or one name for each block; see `visionssm.scans`. Each route has
            its own parameters.
        norm_layer: Norm over channels, a name or a class.
        norm_eps: Epsilon of the norms.
        **shared: Further arguments of `PlainModel`.
    """

    # there D and the biases of each route were vectors, here they are (routes, channels); A_log was decayed
    undecayed = ("cls_token", "pos_embed", ".ssm.D", ".ssm.dt_bias", ".conv_bias")
    unused = ("act_layer",)
    layout = Layout(
        own=r"^blocks\.0\.mixer\.ssm\.D$",
        tell_tale=(r"(^|\.)layers\.\d+\.mixer\.A_log_\d",),
        names=(
            (r"\.mixer\.attn\.", ".mixer.route_gate."),
            *_GATE_NAMES,
            (r"^layers\.", "blocks."),
            (r"^norm_f\.", "norm."),
        ),
        stack={
            "conv_weight": "conv1d_{}.weight",
            "conv_bias": "conv1d_{}.bias",
            "ssm.x_proj_weight": "x_proj_{}.weight",
            "ssm.dt_weight": "dt_proj_{}.weight",
            "ssm.dt_bias": "dt_proj_{}.bias",
            "ssm.A_log": "A_log_{}",
            "ssm.D": "D_{}",
        },
        refuse=(
            _SEARCHING,
            Refusal(
                LocalVMamba.layout.tell_tale[1],
                "the checkpoint is a LocalVMamba, which the original's link to LocalVim-S serves by mistake "
                "(local_vssm_small.ckpt): load it as localvmamba_small; weights of LocalVim-S were not published",
            ),
        ),
    )

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 20,
        patch_size: int = 16,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        class_token: bool = False,
        rope_size: int | tuple[int, int] = 224,
        scan: str | Sequence[str] = _LOCALVIM,
        norm_layer: Any = "rmsnorm",
        norm_eps: float = 1e-5,
        **shared: Any,
    ):
        if class_token and rope_size:
            raise ValueError(
                "a class token has no place on the map to be rotated by: class_token=True needs "
                f"rope_size=0, got {rope_size!r}"
            )
        scans = _scan_of_each_block(scan, depth)
        extra_tokens = (int(class_token), "middle")

        def block(place: Place, kit: Kit) -> StreamBlock:
            mixer = MambaMixer(
                place.dim,
                scans[place.index],
                d_state,
                d_conv,
                expand,
                extra_tokens,
                proj_drop=kit.proj_drop,
                route_gate=RouteGate(expand * place.dim, norm_layer=partial(LayerNorm, eps=norm_eps), **kit.dd),
                **kit.dd,
            )
            return StreamBlock(kit.norm_layer(place.dim, **kit.dd), mixer, place.drop_path)

        super().__init__(
            embed_dim,
            depth,
            patch_embed=lambda in_chans, dim, kit: PatchEmbed(in_chans, dim, patch_size, pad=True, **kit.dd),
            block=block,
            extra_tokens=extra_tokens,
            norm_layer=norm_layer,
            norm_eps=norm_eps,
            **shared,
        )
        self.scan = scan
        rope_grid = self.patch_embed.grid_size(*to_2tuple(rope_size)) if rope_size else None
        self.rope = RotaryTables(embed_dim, rope_grid, device=shared.get("device")) if rope_grid else None

    def init_own_weights(self, mode: str) -> None:
        """As the original, which loses the initial step size; here it is Mamba's."""
        super().init_own_weights(mode)
        for block in self.blocks:
            trunc_normal_(block.mixer.ssm.x_proj_weight, std=0.02)
        self.scale_out_proj()

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """As in `PlainModel`; the blocks share the rotary tables of the map."""
        x, grid = super().embed(x)
        return x, grid if self.rope is None else Grid(*grid[:2], self.rope(*grid[:2]))

    def run_block(
        self,
        index: int,
        x: Tensor,
        grid: Grid,
        with_hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One block on the stream (b, L, d), which is rotated at the entrance of every block."""
        if self.rope is not None:
            x = apply_rot_embed(x, *grid.shared)
        return super().run_block(index, x, grid, with_hidden)

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample the position embedding; drop stored rotary tables that are the model's own.

        Raises:
            CheckpointError: the tables are others, or the position embedding is of no square grid.
        """
        state_dict = dict(state_dict)
        _drop_rotary_tables(state_dict, self)
        return super().adapt_state_dict(state_dict)


def _drop_rotary_tables(out: dict[str, Tensor], model: LocalVim) -> None:
    """Remove stored rotary tables; those of the model's grid must be the ones that the model computes."""
    stored = {kind: out.pop(f"rope.freqs_{kind}", None) for kind in ("sin", "cos")}
    if all(table is None for table in stored.values()):
        return
    if model.rope is None:
        if model.cls_token is not None:
            return  # the missing class token is reported
        raise CheckpointError(
            "the checkpoint is of a LocalVim with rotary embedding, but the model has none; build it with the rope_size"
            " of the checkpoint (published: 224)"
        )
    computed = RotaryTables(model.rope.dim, model.rope.grid_size, device="cpu")
    for kind, table in stored.items():
        expected = getattr(computed, kind)[0]
        if table is None or table.is_meta or table.shape != expected.shape:
            continue
        if not torch.allclose(table.detach().float().cpu(), expected, atol=1e-4):
            raise CheckpointError(
                f"rope.freqs_{kind} of the checkpoint differs from the table that the model computes for a grid of "
                f"{' x '.join(map(str, model.rope.grid_size))}; only the published positions (0 to 14 along each side) "
                "and frequencies (base 10000) are supported"
            )


_family = dict(
    license="apache-2.0",
    origin_url="https://github.com/hunto/LocalMamba",
    paper_name="LocalMamba: Visual State Space Model with Windowed Selective Scan",
    paper_ids="arXiv:2403.09338",
)
_plain = family_cfg(**_family, first_conv="patch_embed.proj", classifier="head", fixed_input_size=True)
_hierarchical = family_cfg(**_family, first_conv="stem.conv", classifier="head.fc", pool_size=(7, 7))
_RELEASES = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0/"

default_cfgs = generate_default_cfgs(
    {
        "localvim_tiny.in1k": _plain(url=_RELEASES + "local_vim_tiny.ckpt"),
        "localvim_tiny_midcls.in1k": _plain(url=_RELEASES + "local_vim_tiny_middle_cls_token.ckpt"),
        "localvim_tiny_nosearch.in1k": _plain(),
        "localvim_small.in1k": _plain(),
        "localvim_small_nosearch.in1k": _plain(),
        "test_localvim.untrained": _plain(input_size=(3, 64, 64)),
        "localvmamba_tiny.in1k": _hierarchical(),
        "localvmamba_small.in1k": _hierarchical(url=_RELEASES + "local_vssm_small.ckpt"),
        "test_localvmamba.untrained": _hierarchical(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


@register_model
def localvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-T with its searched directions; its weights were never released."""
    return build_model(LocalVMamba, "localvmamba_tiny", pretrained, kwargs, depths=(2, 2, 9, 2), scan=_LOCALVMAMBA_TINY)


@register_model
def localvmamba_small(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-S with its searched directions."""
    return build_model(
        LocalVMamba, "localvmamba_small", pretrained, kwargs, depths=(2, 2, 27, 2), scan=_LOCALVMAMBA_SMALL
    )


@register_model
def test_localvmamba(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    return build_model(
        LocalVMamba,
        "test_localvmamba",
        pretrained,
        kwargs,
        dims=(20, 32, 48, 64),
        depths=(1, 1, 2, 1),
        d_state=4,
        scan=_LOCALVMAMBA_TINY[:5],
    )


@register_model
def localvim_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with its searched directions."""
    return build_model(LocalVim, "localvim_tiny", pretrained, kwargs, embed_dim=192)


@register_model
def localvim_tiny_midcls(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with a class token in the middle and without rotary embedding."""
    return build_model(
        LocalVim,
        "localvim_tiny_midcls",
        pretrained,
        kwargs,
        embed_dim=192,
        class_token=True,
        rope_size=0,
        global_pool="token",
    )


@register_model
def localvim_tiny_nosearch(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with rows and windows of 2 x 2 in every block; there are no weights."""
    return build_model(LocalVim, "localvim_tiny_nosearch", pretrained, kwargs, embed_dim=192, scan=_NOT_SEARCHED)


@register_model
def localvim_small(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S with the searched directions of LocalVim-T; its weights were never released."""
    return build_model(LocalVim, "localvim_small", pretrained, kwargs, embed_dim=384)


@register_model
def localvim_small_nosearch(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S with rows and windows of 2 x 2 in every block; there are no weights."""
    return build_model(LocalVim, "localvim_small_nosearch", pretrained, kwargs, embed_dim=384, scan=_NOT_SEARCHED)


@register_model
def test_localvim(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """A pico variant for tests and demonstrations; there are no weights."""
    return build_model(
        LocalVim,
        "test_localvim",
        pretrained,
        kwargs,
        img_size=64,
        rope_size=64,
        embed_dim=48,
        depth=4,
        d_state=4,
        scan=_LOCALVIM[:4],
    )
