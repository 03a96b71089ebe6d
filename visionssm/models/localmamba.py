"""LocalMamba: scans along rows, columns and within windows, chosen for each block by a search.

Paper: LocalMamba: Visual State Space Model with Windowed Selective Scan, https://arxiv.org/abs/2403.09338
Original code and weights: https://github.com/hunto/LocalMamba (Apache-2.0)

LocalVMamba is hierarchical, LocalVim is plain. Routes are gated channel by channel before they are summed.
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    ClassifierHead,
    DropPath,
    LayerNorm,
    apply_rot_embed,
    calculate_drop_path_rates,
    get_norm_layer,
    to_2tuple,
    trunc_normal_,
)
from timm.models import generate_default_cfgs, named_apply, register_model
from torch import Tensor, nn

from ..checkpoints import CheckpointError, check_routes, check_state_dict, identify, unwrap
from ..layers import (
    LocalRouteMixer,
    LocalSS2D,
    PatchEmbed,
    PatchMerging,
    PatchStem,
    RotaryTables,
    Stage,
    StreamBlock,
)
from ..scans import check_scan
from ._builder import build_model
from ._hierarchical import HierarchicalModel, init_module
from ._plain import PlainModel, fit_pos_embed

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


class LocalVMambaBlock(nn.Module):
    """Residual mixer."""

    def __init__(
        self,
        dim: int,
        d_state: int,
        ssm_ratio: float,
        scan: str,
        drop_path: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] = LayerNorm,
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        self.norm = norm_layer(dim, **dd)
        self.mixer = LocalSS2D(
            dim,
            int(ssm_ratio * dim),
            d_state,
            dt_rank=math.ceil(dim / 16),
            scan=scan,
            norm_layer=norm_layer,
            proj_drop=proj_drop,
            **dd,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mixer(self.norm(x)))


class LocalVMamba(HierarchicalModel):
    """LocalVMamba (arXiv:2403.09338).

    Args:
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier; "" for none.
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        d_state: States per channel of the scan.
        ssm_ratio: Channels of the scan over channels of the block.
        scan: Name of the scan order of all blocks, or one name for each block, counted over the stages; see
            `visionssm.scans`. Each route has its own parameters.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projection of the mixer.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        norm_layer: Norm over channels, a name or a class.
        norm_eps: Epsilon of the norms.
        weight_init: "" as published, or "skip".
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        dims: int | Sequence[int] = 96,
        depths: Sequence[int] = (2, 2, 9, 2),
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        scan: str | Sequence[str] = _LOCALVMAMBA_TINY,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: str | type[nn.Module] = "layernorm",
        norm_eps: float = 1e-5,
        weight_init: str = "",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if weight_init not in ("", "skip"):
            raise ValueError(f"weight_init must be '' or 'skip', got {weight_init!r}")
        dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        if len(dims) != len(depths):
            raise ValueError(f"dims and depths must be of one length, got {len(dims)} and {len(depths)}")
        scans = iter(_scan_of_each_block(scan, sum(depths)))
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.output_fmt = "NHWC"
        self.num_features = self.head_hidden_size = dims[-1]
        self.feature_info = []
        norm_layer = partial(get_norm_layer(norm_layer), eps=norm_eps)

        self.stem = PatchStem(in_chans, dims[0], norm_layer=norm_layer, **dd)
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages = []
        for i, dim in enumerate(dims):
            stages.append(
                Stage(
                    PatchMerging(dims[i - 1], dim, norm_layer=norm_layer, **dd) if i > 0 else nn.Identity(),
                    [
                        LocalVMambaBlock(
                            dim,
                            d_state,
                            ssm_ratio,
                            next(scans),
                            drop_path=rate,
                            proj_drop=proj_drop_rate,
                            norm_layer=norm_layer,
                            **dd,
                        )
                        for rate in drop_path_rates[i]
                    ],
                )
            )
            self.feature_info.append(dict(num_chs=dim, reduction=4 * 2**i, module=f"stages.{i}"))
        self.stages = nn.Sequential(*stages)
        self.norm = norm_layer(self.num_features, **dd)
        self.head = ClassifierHead(
            self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt, **dd
        )
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the original training did not decay beyond biases and vectors.

        There the skip weights D were vectors; here they are (routes, channels). A_log, dt_weight and dt_bias were
        decayed.
        """
        return {name for name, _ in self.named_parameters() if name.endswith(".ssm.D")}


class LocalVim(PlainModel):
    """LocalVim (arXiv:2403.09338); images of any size work.

    Args:
        img_size: Size of the image that the position embedding is made for; other sizes resample it at run time.
        patch_size: Side of a patch; images are padded with zeros to a multiple of it.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: "avg" classifies by the mean of the patch tokens, "token" by the class token; "" pools nothing.
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        d_state: States per channel of the scan.
        d_conv: Taps of the causal convolutions.
        expand: Channels of the scan over channels of the tokens.
        class_token: Put a class token in the middle of the patch tokens.
        rope_size: Size of the image that the rotary tables are computed for; other sizes resample the tables. 0 for no
            rotary embedding, which a class token needs.
        scan: Name of the scan order of all blocks, or one name for each block; see `visionssm.scans`. Each route has
            its own parameters.
        feature_stream: Intermediates are the residual stream after a block; else what the block's mixer gives, as in
            the published models for dense prediction.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projection of the mixer.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        norm_layer: Norm over channels, a name or a class.
        norm_eps: Epsilon of the norms.
        weight_init: "" as published, or "skip".
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dim: int = 192,
        depth: int = 20,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        class_token: bool = False,
        rope_size: int | tuple[int, int] = 224,
        scan: str | Sequence[str] = _LOCALVIM,
        feature_stream: bool = True,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: str | type[nn.Module] = "rmsnorm",
        norm_eps: float = 1e-5,
        weight_init: str = "",
        device=None,
        dtype=None,
    ):
        dd = {"device": device, "dtype": dtype}
        super().__init__()
        if weight_init not in ("", "skip"):
            raise ValueError(f"weight_init must be '' or 'skip', got {weight_init!r}")
        if class_token and rope_size:
            raise ValueError(
                "a class token has no place on the map to be rotated by: class_token=True needs "
                f"rope_size=0, got {rope_size!r}"
            )
        scans = _scan_of_each_block(scan, depth)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = embed_dim
        self.feature_stream = feature_stream
        norm_layer = partial(get_norm_layer(norm_layer), eps=norm_eps)

        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, pad=True, **dd)
        self.img_size = to_2tuple(img_size)
        self.grid_size = self.patch_embed.grid_size(*self.img_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd)) if class_token else None
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid_size) + class_token, embed_dim, **dd))
        self.rope = (
            RotaryTables(embed_dim, self.patch_embed.grid_size(*to_2tuple(rope_size)), device=device)
            if rope_size
            else None
        )
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.Sequential(
            *(
                StreamBlock(
                    norm_layer(embed_dim, **dd),
                    LocalRouteMixer(
                        embed_dim, scan, d_state, d_conv, expand, class_token, proj_drop_rate, norm_eps, **dd
                    ),
                    rate,
                )
                for scan, rate in zip(scans, drop_path_rates, strict=True)
            )
        )
        self.feature_info = [dict(num_chs=embed_dim, reduction=patch_size, module=f"blocks.{i}") for i in range(depth)]
        self.norm = norm_layer(embed_dim, **dd)
        self.check_pool(global_pool)
        self.global_pool = global_pool
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as the original does; `needs_reset` also resets what initialised itself at construction.

        The original loses the initial step size (its projection is overwritten, its bias becomes 0); here it has it.
        """
        if mode:
            raise ValueError(f"mode must be '', got {mode!r}")
        named_apply(partial(init_module, needs_reset=needs_reset), self)
        trunc_normal_(self.pos_embed, std=0.02)
        if self.cls_token is not None:
            nn.init.zeros_(self.cls_token)
        for block in self.blocks:
            trunc_normal_(block.mixer.ssm.x_proj_weight, std=0.02)
            nn.init.kaiming_uniform_(block.mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                block.mixer.out_proj.weight /= math.sqrt(len(self.blocks))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the original training did not decay beyond vectors.

        There D and the biases of each route were vectors; here they are (routes, channels). A_log was decayed.
        """
        stacked = (".ssm.D", ".ssm.dt_bias", ".conv_bias")
        names = {name for name, _ in self.named_parameters() if name.endswith(stacked)}
        return names | {"pos_embed"} | ({"cls_token"} if self.cls_token is not None else set())

    def embed(self, x: Tensor) -> tuple[Tensor, tuple]:
        """As in `PlainModel`; beside rows and columns, the rotary tables of the map."""
        x, where = super().embed(x)
        return x, where if self.rope is None else where + self.rope(*where)

    def run_block(
        self,
        block: nn.Module,
        x: Tensor,
        where: tuple,
        with_hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One block on the stream (b, L, d), which is rotated at the entrance of every block."""
        if self.rope is not None:
            x = apply_rot_embed(x, *where[2:])
        return super().run_block(block, x, where, with_hidden)


_LOCALVMAMBA_NAMES = (
    (r"^patch_embed\.0\.", "stem.conv."),
    (r"^patch_embed\.2\.", "stem.norm."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.op\.", r"stages.\1.blocks.\2.mixer."),
    (r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks."),
    (r"\.mixer\.conv2d\.", ".mixer.conv."),
    (r"\.mixer\.x_proj_weight$", ".mixer.ssm.x_proj_weight"),
    (r"\.mixer\.dt_projs_weight$", ".mixer.ssm.dt_weight"),
    (r"\.mixer\.dt_projs_bias$", ".mixer.ssm.dt_bias"),
    (r"\.mixer\.A_logs$", ".mixer.ssm.A_log"),
    (r"\.mixer\.Ds$", ".mixer.ssm.D"),
    (r"\.multi_scan\.attn\.", ".route_gate."),
    (r"\.route_gate\.global_reduce\.", ".route_gate.reduce."),
    (r"\.route_gate\.channel_select\.", ".route_gate.expand."),
    (r"^classifier\.norm\.", "norm."),
    (r"^classifier\.head\.", "head.fc."),
)

# parameters of route k in the published files -> stacked
_LOCALVIM_STACKED = (
    ("conv1d_{}.weight", "conv_weight"),
    ("conv1d_{}.bias", "conv_bias"),
    ("x_proj_{}.weight", "ssm.x_proj_weight"),
    ("dt_proj_{}.weight", "ssm.dt_weight"),
    ("dt_proj_{}.bias", "ssm.dt_bias"),
    ("A_log_{}", "ssm.A_log"),
    ("D_{}", "ssm.D"),
)
_LOCALVIM_NAMES = (
    (r"\.mixer\.attn\.", ".mixer.route_gate."),
    (r"\.route_gate\.global_reduce\.", ".route_gate.reduce."),
    (r"\.route_gate\.channel_select\.", ".route_gate.expand."),
    (r"^layers\.", "blocks."),
    (r"^norm_f\.", "norm."),
)


def checkpoint_filter_fn(state_dict: dict[str, Any], model: LocalVMamba | LocalVim) -> dict[str, Tensor]:
    """Convert a published checkpoint of LocalVMamba or LocalVim to the names of the model's class.

    A state dict of ours passes unchanged. A position embedding of another square grid is resampled.

    Raises:
        CheckpointError: the weights do not fill the model exactly, were made for another number of routes, or are
            those of a network that searches directions.
    """
    source = unwrap(state_dict)
    family = identify(source)
    if any(name.endswith("multi_scan.weights") for name in source):
        raise CheckpointError(
            f"the checkpoint is a {family or 'LocalMamba'} network that searches scan directions (it has "
            "multi_scan.weights: all eight directions in every block); expected a network trained with chosen ones"
        )
    if isinstance(model, LocalVim):
        if family == "LocalVMamba":
            raise CheckpointError(
                "the checkpoint is a LocalVMamba, which the original's link to LocalVim-S serves by mistake "
                "(local_vssm_small.ckpt): load it as localvmamba_small; weights of LocalVim-S were not published"
            )
        out = _convert_localvim(source, model)
    else:
        out = _convert_localvmamba(source, model)
    check_routes(out, model)
    check_state_dict(out, model, source)
    return out


def _rename(name: str, patterns: Sequence[tuple[str, str]]) -> str:
    for pattern, new in patterns:
        name = re.sub(pattern, new, name)
    return name


def _convert_localvmamba(source: dict[str, Any], model: LocalVMamba) -> dict[str, Tensor]:
    if "stem.conv.weight" in source:
        return source
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    out = {}
    for name, value in source.items():
        downsample = re.match(r"^layers\.(\d+)\.downsample\.(.*)", name)
        if downsample:  # there a stage ends with the downsampling, here the next one begins with it
            name = f"stages.{int(downsample[1]) + 1}.downsample.{downsample[2]}"
        name = _rename(name, _LOCALVMAMBA_NAMES)
        # published A_log and D have no axis for the route
        if name.endswith((".ssm.A_log", ".ssm.D")) and name in shapes and value.numel() == shapes[name].numel():
            value = value.reshape(shapes[name])
        out[name] = value
    return out


def _convert_localvim(source: dict[str, Any], model: LocalVim) -> dict[str, Tensor]:
    if "blocks.0.mixer.ssm.D" in source:
        out = dict(source)
    else:
        out = {_rename(name, _LOCALVIM_NAMES): value for name, value in _stack_routes(source).items()}
        _drop_rotary_tables(out, model)
    if "pos_embed" not in out or ("cls_token" in out) != (model.cls_token is not None):
        return out
    return dict(out, pos_embed=fit_pos_embed(out["pos_embed"], model))


def _stack_routes(source: dict[str, Any]) -> dict[str, Tensor]:
    """Stack the parameters of the routes of each mixer, as far as they are of one shape."""
    out = dict(source)
    for prefix in sorted({match[1] for name in source if (match := re.match(r"(layers\.\d+\.mixer\.)D_0$", name))}):
        for pattern, stacked in _LOCALVIM_STACKED:
            routes: list[Tensor] = []
            while (name := prefix + pattern.format(len(routes))) in out:
                routes.append(out.pop(name))
            if len({route.shape for route in routes}) == 1:
                value = torch.stack(routes)
                out[prefix + stacked] = value.squeeze(2) if stacked == "conv_weight" else value
            else:  # reported under their own names
                out |= {prefix + pattern.format(k): route for k, route in enumerate(routes)}
    return out


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


_RELEASES = "https://github.com/hunto/LocalMamba/releases/download/v1.0.0/"


def _cfg(asset: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": _RELEASES + asset if asset else "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "origin_url": "https://github.com/hunto/LocalMamba",
        "paper_name": "LocalMamba: Visual State Space Model with Windowed Selective Scan",
        "paper_ids": "arXiv:2403.09338",
        **kwargs,
    }


_PLAIN = dict(first_conv="patch_embed.proj", classifier="head", fixed_input_size=True, pool_size=None)

default_cfgs = generate_default_cfgs(
    {
        "localvim_tiny.in1k": _cfg("local_vim_tiny.ckpt", **_PLAIN),
        "localvim_tiny_midcls.in1k": _cfg("local_vim_tiny_middle_cls_token.ckpt", **_PLAIN),
        "localvim_tiny_nosearch.in1k": _cfg(**_PLAIN),
        "localvim_small.in1k": _cfg(**_PLAIN),
        "localvim_small_nosearch.in1k": _cfg(**_PLAIN),
        "test_localvim.untrained": _cfg(input_size=(3, 64, 64), **_PLAIN),
        "localvmamba_tiny.in1k": _cfg(),
        "localvmamba_small.in1k": _cfg("local_vssm_small.ckpt"),
        "test_localvmamba.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
    }
)


def _create_localvmamba(variant: str, pretrained: bool, **kwargs: Any) -> LocalVMamba:
    return build_model(LocalVMamba, variant, pretrained, checkpoint_filter_fn, **kwargs)


@register_model
def localvmamba_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-T with its searched directions; its weights were never released."""
    args = dict(depths=(2, 2, 9, 2), scan=_LOCALVMAMBA_TINY)
    return _create_localvmamba("localvmamba_tiny", pretrained, **dict(args, **kwargs))


@register_model
def localvmamba_small(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """LocalVMamba-S with its searched directions."""
    args = dict(depths=(2, 2, 27, 2), scan=_LOCALVMAMBA_SMALL)
    return _create_localvmamba("localvmamba_small", pretrained, **dict(args, **kwargs))


@register_model
def test_localvmamba(pretrained: bool = False, **kwargs: Any) -> LocalVMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(dims=(20, 32, 48, 64), depths=(1, 1, 2, 1), d_state=4, scan=_LOCALVMAMBA_TINY[:5])
    return _create_localvmamba("test_localvmamba", pretrained, **dict(args, **kwargs))


def _create_localvim(variant: str, pretrained: bool, **kwargs: Any) -> LocalVim:
    out_indices = kwargs.pop("out_indices", 3)
    return build_model(LocalVim, variant, pretrained, checkpoint_filter_fn, out_indices=out_indices, **kwargs)


@register_model
def localvim_tiny(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with its searched directions."""
    return _create_localvim("localvim_tiny", pretrained, **dict(dict(embed_dim=192), **kwargs))


@register_model
def localvim_tiny_midcls(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with a class token in the middle and without rotary embedding."""
    args = dict(embed_dim=192, class_token=True, rope_size=0, global_pool="token")
    return _create_localvim("localvim_tiny_midcls", pretrained, **dict(args, **kwargs))


@register_model
def localvim_tiny_nosearch(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-T with rows and windows of 2 x 2 in every block; there are no weights."""
    args = dict(embed_dim=192, scan=_NOT_SEARCHED)
    return _create_localvim("localvim_tiny_nosearch", pretrained, **dict(args, **kwargs))


@register_model
def localvim_small(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S with the searched directions of LocalVim-T; its weights were never released."""
    return _create_localvim("localvim_small", pretrained, **dict(dict(embed_dim=384), **kwargs))


@register_model
def localvim_small_nosearch(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """LocalVim-S with rows and windows of 2 x 2 in every block; there are no weights."""
    args = dict(embed_dim=384, scan=_NOT_SEARCHED)
    return _create_localvim("localvim_small_nosearch", pretrained, **dict(args, **kwargs))


@register_model
def test_localvim(pretrained: bool = False, **kwargs: Any) -> LocalVim:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(img_size=64, rope_size=64, embed_dim=48, depth=4, d_state=4, scan=_LOCALVIM[:4])
    return _create_localvim("test_localvim", pretrained, **dict(args, **kwargs))
