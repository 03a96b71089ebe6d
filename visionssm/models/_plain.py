"""What plain models share: one map of patches from stem to head, and perhaps a class token in its middle."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import get_device_dtype, to_2tuple
from timm.models import checkpoint
from torch import Tensor, nn

from .._timm_compat import feature_take_indices, update_model_input_size
from ..checkpoints import CheckpointError
from ..layers.ssm import state_dtype
from ..layers.tokens import insert_middle_token, middle_token, remove_middle_token, resample_pos_embed
from ._builder import VisionModel

_logger = logging.getLogger(__name__)


class PlainModel(VisionModel):
    """Patch embedding, position embedding, blocks on a float32 residual stream, norm, classifier.

    A subclass makes `patch_embed` (`visionssm.layers.PatchEmbed`), `cls_token` (1, 1, d) or None, `pos_embed`
    (1, tokens, d), `blocks` (`visionssm.layers.StreamBlock`), `norm`, `head_drop`, `head`, `grid_size`, `img_size`,
    `global_pool`, `num_classes`, `num_features`, `head_hidden_size`, `in_chans` and `feature_info`. Intermediates are
    the stream after a block, or what the block adds to it if it sets `feature_stream` to False.
    """

    output_fmt = "NLC"
    feature_stream = True
    grad_checkpointing = False

    def check_pool(self, global_pool: str) -> None:
        """Check the name of a pooling.

        Raises:
            ValueError: the name is unknown, or asks for a class token that there is not.
        """
        known = ("", "avg") if self.cls_token is None else ("", "avg", "token")
        if global_pool not in known:
            raise ValueError(f"global_pool must be one of {', '.join(map(repr, known))}, got {global_pool!r}")

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r"^cls_token|^pos_embed|^patch_embed",
            blocks=[(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, keeping device, dtype and mode; 0 classes remove it, a pool of "" pools nothing."""
        if global_pool is not None:
            self.check_pool(global_pool)
            self.global_pool = global_pool
        self.num_classes = num_classes
        dd = get_device_dtype(self)
        head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head = head.train(self.training)

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resample the position embedding for good, for images of another size."""
        self.img_size = to_2tuple(img_size)
        grid = self.patch_embed.grid_size(*self.img_size)
        with torch.no_grad():
            pos_embed = resample_pos_embed(self.pos_embed, self.grid_size, grid, self.cls_token is not None)
        self.pos_embed = nn.Parameter(pos_embed, requires_grad=self.pos_embed.requires_grad)
        self.grid_size = grid
        update_model_input_size(self, self.img_size)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple]:
        """Images (b, c, h, w) to the first state of the stream (b, L, d), and to what `run_block` is given beside it.

        That is rows and columns of the map, and whatever else a subclass computes once for all blocks.
        """
        x = self.patch_embed(x)
        height, width = x.shape[1], x.shape[2]
        x = x.flatten(1, 2)
        if self.cls_token is not None:
            x = insert_middle_token(x, self.cls_token)
        pos_embed = resample_pos_embed(self.pos_embed, self.grid_size, (height, width), self.cls_token is not None)
        return state_dtype(x) + pos_embed, (height, width)

    def run_block(
        self,
        block: nn.Module,
        x: Tensor,
        where: tuple,
        with_hidden: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One block on the stream (b, L, d); with `with_hidden`, also what it adds to the stream."""
        if self.grad_checkpointing:
            return checkpoint(block, x, *where[:2], with_hidden)
        return block(x, *where[:2], with_hidden)

    def finish(self, x: Tensor) -> Tensor:
        """The final norm, in the model's dtype."""
        return self.norm(x.to(self.pos_embed.dtype))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | list[tuple[Tensor, Tensor]] | tuple[Tensor, list]:
        """Run the backbone and keep the stream after blocks.

        Args:
            x: Images (b, c, h, w).
            indices: The last n blocks if an integer, all if None, else these blocks.
            return_prefix_tokens: Return pairs of patch tokens and class token (b, 1, d), or (b, 0, d) without one.
            norm: Apply the final norm to every intermediate.
            stop_early: Stop after the last block needed.
            output_fmt: "NCHW" for maps, "NLC" for patch tokens.
            intermediates_only: Return the intermediates only.

        Returns:
            What `forward_features` returns, and the streams after the blocks (or what the blocks add to them, see
            `feature_stream`) without the class token; or the latter.

        Raises:
            ValueError: another output format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        intermediates = []
        x, where = self.embed(x)
        for i, block in enumerate(self.blocks[: max_index + 1] if stop_early else self.blocks):
            x, hidden = self.run_block(block, x, where, with_hidden=True)
            if i not in take_indices:
                continue
            y = x if self.feature_stream else hidden
            y = self.finish(y) if norm else y.to(self.pos_embed.dtype)
            patches = y if self.cls_token is None else remove_middle_token(y)
            if output_fmt == "NCHW":
                patches = patches.unflatten(1, where[:2]).permute(0, 3, 1, 2).contiguous()
            if return_prefix_tokens:
                prefix = y[:, :0] if self.cls_token is None else middle_token(y).unsqueeze(1)
                patches = patches, prefix
            intermediates.append(patches)
        if intermediates_only:
            return intermediates
        return self.finish(x), intermediates

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the blocks after the last one needed, and on request norm and head; returns the blocks kept."""
        take_indices, max_index = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) to the normalised tokens (b, L, d)."""
        x, where = self.embed(x)
        for block in self.blocks:
            x = self.run_block(block, x, where)
        return self.finish(x)

    def pool(self, x: Tensor) -> Tensor:
        """Tokens (b, L, d) to (b, d): the class token, or the mean of the patch tokens; unchanged for a pool of ""."""
        if self.global_pool == "token":
            return middle_token(x)
        if self.global_pool == "avg":
            return (x if self.cls_token is None else remove_middle_token(x)).mean(dim=1)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; with `pre_logits`, only pool."""
        x = self.head_drop(self.pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) of any size from a patch on to logits (b, num_classes)."""
        return self.forward_head(self.forward_features(x))


def fit_pos_embed(pos_embed: Tensor, model: PlainModel) -> Tensor:
    """Resample a checkpoint's position embedding of a square grid to the model's grid.

    Args:
        pos_embed: (1, tokens, d), with an entry for the class token if the model has one.
        model: The model it shall fit.

    Returns:
        (1, tokens of the model, d); the argument itself if it fits, or if its channels differ.

    Raises:
        CheckpointError: it is of no square grid.
    """
    expected = model.pos_embed.shape
    if pos_embed.ndim != 3 or pos_embed.shape[1] == expected[1] or pos_embed.shape[2] != expected[2]:
        return pos_embed
    has_token = model.cls_token is not None
    side = math.isqrt(max(pos_embed.shape[1] - has_token, 0))
    grid = " x ".join(map(str, model.grid_size))
    if side * side + has_token != pos_embed.shape[1]:
        raise CheckpointError(
            f"the position embedding of the checkpoint has {pos_embed.shape[1]} entries, which is no square grid"
            f"{' and a class token' if has_token else ''}, so it cannot be resampled to the model's {grid} patches; "
            "build the model with the img_size that the checkpoint was trained at, load, then call set_input_size"
        )
    _logger.warning("the position embedding of the checkpoint is resampled: %d x %d to %s patches", side, side, grid)
    return resample_pos_embed(pos_embed, (side, side), model.grid_size, has_token)
