"""Vision Mamba (Vim): a plain model that scans its tokens forwards and backwards.

Paper: Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model,
https://arxiv.org/abs/2401.09417
Original code and weights: https://github.com/hustvl/Vim (Apache-2.0)

The published models of February 2024: class token in the middle of the patch tokens, learned position embedding, two
directions with parameters of their own. Images of any size from a patch on work: the position embedding is resampled.
"""

import math
import re
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import calculate_drop_path_rates, get_norm_layer, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, named_apply, register_model
from torch import Tensor, nn

from ..checkpoints import CheckpointError, check_routes, check_state_dict, unwrap
from ..layers import PatchEmbed, RouteMixer, StreamBlock
from ..scans import check_scan, scan_table
from ._builder import build_model
from ._plain import PlainModel, fit_pos_embed

__all__ = ["Vim"]


class VimMixer(RouteMixer):
    """`RouteMixer` whose "bidirectional" order reads the sequence, class token included, forwards and backwards."""

    def order(self, height: int, width: int, device: torch.device) -> Tensor:
        """Scan table (routes, steps) of a map, class token included."""
        if self.scan == "bidirectional":
            # with an odd number of patches this is not the reversed map with the class token inserted
            return scan_table("bidirectional", 1, height * width + 1, device)
        return super().order(height, width, device)


class Vim(PlainModel):
    """Vision Mamba (arXiv:2401.09417).

    Args:
        img_size: Size of the image that the position embedding is made for; other sizes resample it at run time.
        patch_size: Side of a patch.
        stride: Distance of neighbouring patches; `patch_size` if None.
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: "token" classifies by the class token, "avg" by the mean of the patch tokens; "" pools nothing.
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        d_state: States per channel of the scan.
        d_conv: Taps of the causal convolutions.
        expand: Channels of the scan over channels of the tokens.
        scan: Name of the scan order, see `visionssm.scans`; each of its routes has its own parameters.
        average: Merge the routes by their mean, not their sum.
        feature_stream: Intermediates are the residual stream after a block; else what the block's mixer gives, as in
            the published segmentation model of Vim-Ti.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projections of the mixers.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        norm_layer: Norm over channels, a name or a class.
        norm_eps: Epsilon of the norms.
        weight_init: "" as published, or "skip".
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        stride: int | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 192,
        depth: int = 24,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan: str = "bidirectional",
        average: bool = True,
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
        check_scan(scan)
        if weight_init not in ("", "skip"):
            raise ValueError(f"weight_init must be '' or 'skip', got {weight_init!r}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.scan = scan
        self.feature_stream = feature_stream
        self.num_features = self.head_hidden_size = embed_dim
        norm_layer = partial(get_norm_layer(norm_layer), eps=norm_eps)

        self.patch_embed = PatchEmbed(in_chans, embed_dim, patch_size, stride, **dd)
        self.img_size = to_2tuple(img_size)
        self.grid_size = self.patch_embed.grid_size(*self.img_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **dd))
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(self.grid_size) + 1, embed_dim, **dd))
        self.blocks = nn.Sequential(
            *(
                StreamBlock(
                    norm_layer(embed_dim, **dd),
                    VimMixer(
                        embed_dim,
                        scan,
                        d_state,
                        d_conv,
                        expand,
                        with_middle_token=True,
                        average=average,
                        proj_drop=proj_drop_rate,
                        **dd,
                    ),
                    rate,
                )
                for rate in calculate_drop_path_rates(drop_path_rate, depth)
            )
        )
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=self.patch_embed.stride, module=f"blocks.{i}") for i in range(depth)
        ]
        self.norm = norm_layer(embed_dim, **dd)
        self.check_pool(global_pool)
        self.global_pool = global_pool
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **dd) if num_classes > 0 else nn.Identity()
        if weight_init != "skip":
            self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as the original does; `needs_reset` also resets what initialised itself at construction.

        The original loses the initial step size of the backward direction (its bias becomes 0); here both have it.
        """
        if mode:
            raise ValueError(f"mode must be '', got {mode!r}")
        if needs_reset:
            named_apply(_reset, self)
        trunc_normal_(self.cls_token, std=0.02)
        trunc_normal_(self.pos_embed, std=0.02)
        for block in self.blocks:
            nn.init.kaiming_uniform_(block.mixer.out_proj.weight, a=math.sqrt(5))
            with torch.no_grad():
                block.mixer.out_proj.weight /= math.sqrt(len(self.blocks))
        if isinstance(self.head, nn.Linear):
            trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that the original training did not decay beyond vectors.

        There D and the biases of each direction were vectors; here they are (routes, channels). A_log was marked but
        decayed all the same.
        """
        stacked = (".ssm.D", ".ssm.dt_bias", ".conv_bias")
        return {"cls_token", "pos_embed", *(name for name, _ in self.named_parameters() if name.endswith(stacked))}


def _reset(module: nn.Module, name: str = "") -> None:
    if hasattr(module, "reset_parameters"):
        module.reset_parameters()


# parameters of the two directions in the published files -> stacked
_STACKED = (
    ("conv1d.weight", "conv1d_b.weight", "conv_weight"),
    ("conv1d.bias", "conv1d_b.bias", "conv_bias"),
    ("x_proj.weight", "x_proj_b.weight", "ssm.x_proj_weight"),
    ("dt_proj.weight", "dt_proj_b.weight", "ssm.dt_weight"),
    ("dt_proj.bias", "dt_proj_b.bias", "ssm.dt_bias"),
    ("A_log", "A_b_log", "ssm.A_log"),
    ("D", "D_b", "ssm.D"),
)
_STRIDE8_GRID = 27  # of the published models with overlapping patches at 224


def checkpoint_filter_fn(state_dict: dict[str, Any], model: Vim) -> dict[str, Tensor]:
    """Convert a published checkpoint, of any nesting, to the names of `Vim`.

    A state dict of ours passes unchanged. A position embedding of another square grid is resampled.

    Raises:
        CheckpointError: the weights do not fill the model exactly, are of the models without middle class token, of
            another stride, or were made for another number of routes.
    """
    source = unwrap(state_dict)
    if any(re.fullmatch(r"rope\.freqs_\w+", name) for name in source) and "cls_token" in source:
        raise CheckpointError(
            "the checkpoint is of a Vim from before February 2024, with rotary embedding and the class token first; "
            "only the models with a middle class token ('midclstok') are supported"
        )
    if any(name.endswith(".mixer.A_b_log") for name in source) and "cls_token" not in source:
        raise CheckpointError(
            "the checkpoint is of a Vim from before February 2024, without class token, as used for detection and "
            "segmentation; only the models with a middle class token ('midclstok') are supported"
        )
    out = source if "blocks.0.mixer.ssm.D" in source else _stack(source)
    check_routes(out, model)
    if "pos_embed" in out:
        _refuse_stride8(out["pos_embed"], model)
        out = dict(out, pos_embed=fit_pos_embed(out["pos_embed"], model))
    check_state_dict(out, model, source)
    return out


def _stack(source: dict[str, Any]) -> dict[str, Tensor]:
    """Rename, and stack the parameters of the two directions; pairs that are incomplete keep their names."""
    out = dict(source)
    for name in source:
        match = re.fullmatch(r"(layers\.\d+\.mixer\.)(.+)", name)
        for forward, backward, stacked in _STACKED if match else ():
            if match[2] == forward and match[1] + backward in source:
                pair = torch.stack([out.pop(name), out.pop(match[1] + backward)])
                out[match[1] + stacked] = pair.squeeze(2) if stacked == "conv_weight" else pair
    return {re.sub(r"^norm_f\.", "norm.", re.sub(r"^layers\.", "blocks.", name)): value for name, value in out.items()}


def _refuse_stride8(pos_embed: Tensor, model: Vim) -> None:
    stride, tokens = model.patch_embed.stride, model.pos_embed.shape[1]
    of_stride8 = pos_embed.ndim == 3 and pos_embed.shape[1] == _STRIDE8_GRID**2 + 1
    if of_stride8 and tokens != pos_embed.shape[1] and stride == model.patch_embed.patch_size:
        raise CheckpointError(
            f"the checkpoint is of a Vim with stride 8: its position embedding is of {_STRIDE8_GRID} x {_STRIDE8_GRID} "
            f"patches; this model has stride {stride} and {' x '.join(map(str, model.grid_size))} patches, use its "
            "variant with the ending '_stride8'"
        )


def _cfg(repository: str = "", file: str = "", **kwargs: Any) -> dict[str, Any]:
    hub = {"hf_hub_id": f"hustvl/{repository}", "hf_hub_filename": file} if repository else {}
    return {
        **hub,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://github.com/hustvl/Vim",
        "paper_name": "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
        "paper_ids": "arXiv:2401.09417",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "vim_tiny.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
        "vim_tiny_stride8.in1k": _cfg("Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
        "vim_small.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
        "vim_small_stride8.in1k": _cfg("Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
        "vim_base.in1k": _cfg("Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth"),
        "test_vim.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


def _create_vim(variant: str, pretrained: bool, **kwargs: Any) -> Vim:
    out_indices = kwargs.pop("out_indices", 3)
    return build_model(Vim, variant, pretrained, checkpoint_filter_fn, out_indices=out_indices, **kwargs)


@register_model
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti."""
    return _create_vim("vim_tiny", pretrained, **dict(dict(embed_dim=192), **kwargs))


@register_model
def vim_tiny_stride8(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti fine-tuned on overlapping patches ("Vim-Ti+")."""
    return _create_vim("vim_tiny_stride8", pretrained, **dict(dict(embed_dim=192, stride=8), **kwargs))


@register_model
def vim_small(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S."""
    return _create_vim("vim_small", pretrained, **dict(dict(embed_dim=384), **kwargs))


@register_model
def vim_small_stride8(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S fine-tuned on overlapping patches ("Vim-S+")."""
    return _create_vim("vim_small_stride8", pretrained, **dict(dict(embed_dim=384, stride=8), **kwargs))


@register_model
def vim_base(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B."""
    return _create_vim("vim_base", pretrained, **dict(dict(embed_dim=768), **kwargs))


@register_model
def test_vim(pretrained: bool = False, **kwargs: Any) -> Vim:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(img_size=64, embed_dim=48, depth=4, d_state=8)
    return _create_vim("test_vim", pretrained, **dict(args, **kwargs))
