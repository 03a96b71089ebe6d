"""Mamba-Reg ("Mamba-R"): Vim with registers spread evenly among the patch tokens.

Paper: Mamba-R: Vision Mamba ALSO Needs Registers, https://arxiv.org/abs/2405.14858
Original code and weights: https://github.com/wangf3014/Mamba-Reg (no licence is stated)

The registers, reduced by a common projection and concatenated, are what the classifier sees. Images of any size from a
patch on work: the position embedding is resampled, and the registers move with the number of patches.
"""

from functools import partial
from typing import Any

import torch
from timm.layers import RmsNorm, get_device_dtype, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from ..checkpoints import Layout
from ..layers import take_tokens
from ._bidirectional import DIRECTIONS, NAMES, BidirectionalModel
from ._builder import build_model, family_cfg

__all__ = ["MambaReg"]


class MambaReg(BidirectionalModel):
    """Mamba-Reg (arXiv:2405.14858).

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        num_registers: Number of registers.
        reduction: Channels of a register over those that the classifier sees of it; 1 for registers as they are.
        norm_layer: Norm over channels, a name or a class.
        global_pool: "token" classifies by the registers; "" pools nothing.
        **shared: Further arguments of `visionssm.models._bidirectional.BidirectionalModel` and `PlainModel`.

    Raises:
        ValueError: the channels or the registers are no multiple of the reduction.
    """

    undecayed = (*BidirectionalModel.undecayed, "pos_embed_cls")
    layout = Layout(
        own=r"^blocks\.0\.mixer\.ssm\.D$",
        tell_tale=(r"(^|\.)layers\.\d+\.mixer\.A_b_log$", r"^pos_embed_cls$"),
        names=NAMES,
        stack=DIRECTIONS,
    )

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 24,
        num_registers: int = 12,
        reduction: int = 1,
        norm_layer: Any = "rmsnorm",
        global_pool: str = "token",
        **shared: Any,
    ):
        if num_registers < 1 or reduction < 1 or embed_dim % reduction or num_registers % reduction:
            raise ValueError(
                f"embed_dim and num_registers must be multiples of reduction, got {embed_dim}, {num_registers} and "
                f"{reduction}"
            )
        weight_init = shared.pop("weight_init", "")
        num_classes = shared.pop("num_classes", 1000)
        super().__init__(
            embed_dim,
            depth,
            extra_tokens=(num_registers, "even"),
            embed_extra_tokens=False,
            norm_layer=norm_layer,
            global_pool=global_pool,
            num_classes=0,
            weight_init="skip",
            **shared,
        )
        dd = get_device_dtype(self)
        self.pos_embed_cls = nn.Parameter(torch.empty(1, num_registers, embed_dim, **dd))
        self.head_hidden_size = num_registers * embed_dim // reduction
        self.neck: nn.Module = nn.Identity()
        self.norm_neck: nn.Module = nn.Identity()
        if reduction > 1:
            self.neck = nn.Linear(embed_dim, embed_dim // reduction, bias=False, **dd)
            self.norm_neck = RmsNorm(self.head_hidden_size, eps=1e-5, **dd)
        self.reset_classifier(num_classes)
        self.check_arguments({}, weight_init)
        if weight_init != "skip":
            self.init_weights(weight_init, needs_reset=False)

    def check_pool(self, global_pool: str) -> None:
        """Check the name of a pooling.

        Raises:
            ValueError: the name is none of "token" and "".
        """
        if global_pool not in ("", "token"):
            raise ValueError(f"global_pool must be 'token' or '', got {global_pool!r}")

    def init_own_weights(self, mode: str) -> None:
        """As the original, but for the initial step size of the backward direction, which it loses."""
        super().init_own_weights(mode)
        trunc_normal_(self.pos_embed_cls, std=0.02)
        if isinstance(self.neck, nn.Linear):
            trunc_normal_(self.neck.weight, std=0.02)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names per layer, for layer-wise learning rates."""
        groups = super().group_matcher(coarse)
        groups["blocks"][-1] = (r"^norm|^neck", (99999,))
        return groups

    def prune_intermediate_layers(
        self, indices: Any = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the blocks after the last one needed, and on request the norm, and the head with its projection."""
        kept = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.neck = nn.Identity()
            self.norm_neck = nn.Identity()
        return kept

    def embed_extra(self) -> Tensor:
        """The registers (1, n, d) with their own position embedding."""
        return self.cls_token + self.pos_embed_cls

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify by the registers; with `pre_logits`, what the classifier sees (b, head_hidden_size)."""
        if not self.global_pool:
            return self.head_drop(x) if pre_logits else self.head(self.head_drop(x))
        registers = take_tokens(x, self.num_extra_tokens, self.token_place)
        x = self.head_drop(self.norm_neck(self.neck(registers).flatten(1)))
        return x if pre_logits else self.head(x)


_cfg = family_cfg(
    license="unknown",
    origin_url="https://github.com/wangf3014/Mamba-Reg",
    paper_name="Mamba-R: Vision Mamba ALSO Needs Registers",
    paper_ids="arXiv:2405.14858",
    first_conv="patch_embed.proj",
    classifier="head",
    crop_pct=1.0,
    fixed_input_size=True,
)
_hub = partial(_cfg, hf_hub_id="Wangf3014/Mamba-Reg")

default_cfgs = generate_default_cfgs(
    {
        "mambareg_tiny.in1k": _cfg(),
        "mambareg_small.in1k": _hub(hf_hub_filename="mambar_small_patch16_224.pth"),
        "mambareg_base.in1k": _hub(hf_hub_filename="mambar_base_patch16_224.pth"),
        "mambareg_large.in1k": _hub(hf_hub_filename="mambar_large_patch16_224.pth"),
        "test_mambareg.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


@register_model
def mambareg_tiny(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-T; its weights were never released."""
    return build_model(MambaReg, "mambareg_tiny", pretrained, kwargs, embed_dim=192)


@register_model
def mambareg_small(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-S."""
    return build_model(MambaReg, "mambareg_small", pretrained, kwargs, embed_dim=384, reduction=2)


@register_model
def mambareg_base(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-B."""
    return build_model(MambaReg, "mambareg_base", pretrained, kwargs, embed_dim=768, reduction=4)


@register_model
def mambareg_large(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """Mamba-Reg-L."""
    args = dict(embed_dim=1024, depth=48, num_registers=16, reduction=8)
    return build_model(MambaReg, "mambareg_large", pretrained, kwargs, **args)


@register_model
def test_mambareg(pretrained: bool = False, **kwargs: Any) -> MambaReg:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(img_size=64, embed_dim=48, depth=4, d_state=8, num_registers=4, reduction=2)
    return build_model(MambaReg, "test_mambareg", pretrained, kwargs, **args)
