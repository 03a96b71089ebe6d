"""ShuffleMamba: Vim with its class token first, trained with a stochastic shuffle of each layer's tokens.

Paper: Stochastic Layer-Wise Shuffle for Improving Vision Mamba Training, https://arxiv.org/abs/2408.17081
Original code: https://github.com/huangzizheng01/ShuffleMamba (no licence is stated); weights were not released

The shuffle itself, `shuffle_rate`, is an option of every plain model; it changes nothing in evaluation.
"""

from typing import Any

from timm.layers import trunc_normal_
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..checkpoints import Layout
from ._bidirectional import DIRECTIONS, NAMES, BidirectionalModel
from ._builder import build_model, family_cfg

__all__ = ["ShuffleMamba"]


class ShuffleMamba(BidirectionalModel):
    """ShuffleMamba (arXiv:2408.17081).

    The names and shapes of a file are Vim's, so that the two cannot be told apart by them.

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        norm_layer: Norm over channels, a name or a class.
        global_pool: "token" classifies by the class token, "avg" by the mean of the patch tokens; "" pools nothing.
        **shared: Further arguments of `visionssm.models._bidirectional.BidirectionalModel` and `PlainModel`;
            `weight_init` is "", or "published", where the rule for linear layers overwrites the initial step sizes.
    """

    init_modes = ("", "published")
    layout = Layout(own=r"^blocks\.0\.mixer\.ssm\.D$", names=NAMES, stack=DIRECTIONS)

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 24,
        norm_layer: Any = "rmsnorm",
        global_pool: str = "token",
        **shared: Any,
    ):
        super().__init__(
            embed_dim,
            depth,
            extra_tokens=(1, "first"),
            norm_layer=norm_layer,
            global_pool=global_pool,
            **shared,
        )

    def init_own_weights(self, mode: str) -> None:
        """Linear layers and projections from a truncated normal; the class token is zero."""
        super().init_own_weights(mode)
        nn.init.zeros_(self.cls_token)
        for block in self.blocks:
            trunc_normal_(block.mixer.in_proj.weight, std=0.02)
            trunc_normal_(block.mixer.ssm.x_proj_weight, std=0.02)
            if mode == "published":
                trunc_normal_(block.mixer.ssm.dt_weight, std=0.02)
                nn.init.zeros_(block.mixer.ssm.dt_bias)


_cfg = family_cfg(
    license="unknown",
    origin_url="https://github.com/huangzizheng01/ShuffleMamba",
    paper_name="Stochastic Layer-Wise Shuffle for Improving Vision Mamba Training",
    paper_ids="arXiv:2408.17081",
    first_conv="patch_embed.proj",
    classifier="head",
    fixed_input_size=True,
)

default_cfgs = generate_default_cfgs(
    {
        "shufflemamba_middle.in1k": _cfg(),
        "shufflemamba_base.in1k": _cfg(),
        "shufflemamba_large.in1k": _cfg(),
        "shufflemamba_large_d48.in1k": _cfg(),
        "test_shufflemamba.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


@register_model
def shufflemamba_middle(pretrained: bool = False, **kwargs: Any) -> ShuffleMamba:
    """ShuffleMamba-M, with layer norms."""
    args = dict(embed_dim=576, depth=32, norm_layer="layernorm")
    return build_model(ShuffleMamba, "shufflemamba_middle", pretrained, kwargs, **args)


@register_model
def shufflemamba_base(pretrained: bool = False, **kwargs: Any) -> ShuffleMamba:
    """ShuffleMamba-B."""
    return build_model(ShuffleMamba, "shufflemamba_base", pretrained, kwargs, embed_dim=768, depth=24)


@register_model
def shufflemamba_large(pretrained: bool = False, **kwargs: Any) -> ShuffleMamba:
    """ShuffleMamba-L of 40 blocks."""
    return build_model(ShuffleMamba, "shufflemamba_large", pretrained, kwargs, embed_dim=1024, depth=40)


@register_model
def shufflemamba_large_d48(pretrained: bool = False, **kwargs: Any) -> ShuffleMamba:
    """ShuffleMamba-L of 48 blocks."""
    return build_model(ShuffleMamba, "shufflemamba_large_d48", pretrained, kwargs, embed_dim=1024, depth=48)


@register_model
def test_shufflemamba(pretrained: bool = False, **kwargs: Any) -> ShuffleMamba:
    """A pico variant for tests and demonstrations; there are no weights."""
    args = dict(img_size=64, embed_dim=48, depth=4, d_state=8)
    return build_model(ShuffleMamba, "test_shufflemamba", pretrained, kwargs, **args)
