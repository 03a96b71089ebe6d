"""Vision Mamba (Vim): a plain model that scans its tokens forwards and backwards.

Paper: Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model,
https://arxiv.org/abs/2401.09417
Original code and weights: https://github.com/hustvl/Vim (Apache-2.0)

The published models of February 2024: class token in the middle of the patch tokens, learned position embedding, two
directions with parameters of their own. Images of any size from a patch on work: the position embedding is resampled.
"""

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor

from ..checkpoints import CheckpointError, Layout, Refusal
from ._bidirectional import DIRECTIONS, NAMES, BidirectionalModel
from ._builder import build_model, family_cfg

__all__ = ["Vim"]

_STRIDE8_GRID = 27  # of the published models with overlapping patches at 224


class Vim(BidirectionalModel):
    """Vision Mamba (arXiv:2401.09417).

    Args:
        embed_dim: Channels of the tokens.
        depth: Number of blocks.
        patch_size: Side of a patch.
        stride: Distance of neighbouring patches; `patch_size` if None.
        d_state: States per channel of the scan.
        d_conv: Taps of the causal convolutions.
        expand: Channels of the scan over channels of the tokens.
        scan: Name of the scan order, see `visionssm.scans`; each of its routes has its own parameters.
        average: Merge the routes by their mean, not their sum.
        global_pool: "token" classifies by the class token, "avg" by the mean of the patch tokens; "" pools nothing.
        norm_layer: Norm over channels, a name or a class.
        **shared: Further arguments of `PlainModel`; the segmentation model of Vim-Ti has `feature_stream=False`.
    """

    layout = Layout(
        own=r"^blocks\.0\.mixer\.ssm\.D$",
        tell_tale=(r"(^|\.)layers\.\d+\.mixer\.A_b_log$",),
        names=NAMES,
        stack=DIRECTIONS,
        refuse=(
            Refusal(
                r"\.mixer\.A_b_log$",
                "the checkpoint is of a Vim from before February 2024, without class token, as used for detection and "
                "segmentation; only the models with a middle class token ('midclstok') are supported",
                without="^cls_token$",
            ),
            Refusal(
                r"^rope\.freqs_\w+$",
                "the checkpoint is of a Vim from before February 2024, with rotary embedding and the class token "
                "first; only the models with a middle class token ('midclstok') are supported",
                without=r"\.A_log_\d",  # LocalVim's
            ),
        ),
    )

    def __init__(
        self,
        embed_dim: int = 192,
        depth: int = 24,
        patch_size: int = 16,
        stride: int | None = None,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        scan: str = "bidirectional",
        average: bool = True,
        global_pool: str = "token",
        norm_layer: Any = "rmsnorm",
        **shared: Any,
    ):
        super().__init__(
            embed_dim,
            depth,
            patch_size=patch_size,
            stride=stride,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            scan=scan,
            average=average,
            extra_tokens=(1, "middle"),
            global_pool=global_pool,
            norm_layer=norm_layer,
            **shared,
        )

    def adapt_state_dict(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Resample the position embedding.

        Raises:
            CheckpointError: it is of a model of another stride, or of no square grid.
        """
        pos_embed, stride = state_dict.get("pos_embed"), self.patch_embed.stride
        of_stride8 = pos_embed is not None and pos_embed.ndim == 3 and pos_embed.shape[1] == _STRIDE8_GRID**2 + 1
        if of_stride8 and pos_embed.shape[1] != self.pos_embed.shape[1] and stride == self.patch_embed.patch_size:
            raise CheckpointError(
                f"the checkpoint is of a Vim with stride 8: its position embedding is of {_STRIDE8_GRID} x "
                f"{_STRIDE8_GRID} patches; this model has stride {stride} and {' x '.join(map(str, self.grid_size))} "
                "patches, use its variant with the ending '_stride8'"
            )
        return super().adapt_state_dict(state_dict)


_cfg = family_cfg(
    license="apache-2.0",
    origin_url="https://github.com/hustvl/Vim",
    paper_name="Vision Mamba: Efficient Visual Representation Learning with Bidirectional State Space Model",
    paper_ids="arXiv:2401.09417",
    first_conv="patch_embed.proj",
    classifier="head",
    fixed_input_size=True,
)
_hub = partial(_cfg, hf_hub_id="hustvl/Vim-tiny-midclstok")
_hub_small = partial(_cfg, hf_hub_id="hustvl/Vim-small-midclstok")

default_cfgs = generate_default_cfgs(
    {
        "vim_tiny.in1k": _hub(hf_hub_filename="vim_t_midclstok_76p1acc.pth"),
        "vim_tiny_stride8.in1k": _hub(hf_hub_filename="vim_t_midclstok_ft_78p3acc.pth"),
        "vim_small.in1k": _hub_small(hf_hub_filename="vim_s_midclstok_80p5acc.pth"),
        "vim_small_stride8.in1k": _hub_small(hf_hub_filename="vim_s_midclstok_ft_81p6acc.pth"),
        "vim_base.in1k": _cfg(hf_hub_id="hustvl/Vim-base-midclstok", hf_hub_filename="vim_b_midclstok_81p9acc.pth"),
        "test_vim.untrained": _cfg(input_size=(3, 64, 64)),
    }
)


@register_model
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti."""
    return build_model(Vim, "vim_tiny", pretrained, kwargs, embed_dim=192)


@register_model
def vim_tiny_stride8(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-Ti fine-tuned on overlapping patches ("Vim-Ti+")."""
    return build_model(Vim, "vim_tiny_stride8", pretrained, kwargs, embed_dim=192, stride=8)


@register_model
def vim_small(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S."""
    return build_model(Vim, "vim_small", pretrained, kwargs, embed_dim=384)


@register_model
def vim_small_stride8(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-S fine-tuned on overlapping patches ("Vim-S+")."""
    return build_model(Vim, "vim_small_stride8", pretrained, kwargs, embed_dim=384, stride=8)


@register_model
def vim_base(pretrained: bool = False, **kwargs: Any) -> Vim:
    """Vim-B."""
    return build_model(Vim, "vim_base", pretrained, kwargs, embed_dim=768)


@register_model
def test_vim(pretrained: bool = False, **kwargs: Any) -> Vim:
    """A pico variant for tests and demonstrations; there are no weights."""
    return build_model(Vim, "test_vim", pretrained, kwargs, img_size=64, embed_dim=48, depth=4, d_state=8)
