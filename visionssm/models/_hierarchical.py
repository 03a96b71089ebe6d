"""What the hierarchical models have in common: a stem, stages, a norm and a head over maps (b, h, w, c)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import get_device_dtype, trunc_normal_
from timm.models import named_apply
from torch import Tensor, nn

from .._timm_compat import feature_take_indices
from ._builder import VisionModel


class HierarchicalModel(VisionModel):
    """Base of models whose stages shrink the map, for images of any size.

    A subclass sets `num_classes`, `in_chans`, `output_fmt`, `num_features`, `head_hidden_size`, `feature_info`, and the
    modules `stem`, `stages` (each with `grad_checkpointing`, beginning with its `downsample`), `norm` and `head`.
    """

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as the original does; `needs_reset` also resets what initialised itself at construction."""
        if mode:
            raise ValueError(f"mode must be '', got {mode!r}")
        named_apply(partial(init_module, needs_reset=needs_reset), self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names per layer, for layer-wise learning rates."""
        return dict(
            stem=r"^stem",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^norm", (99999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward instead of storing what they need."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, keeping device and dtype; 0 classes remove it, a pool of "" pools nothing."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Run the backbone and keep the outputs of stages.

        Args:
            x: Images (b, c, h, w).
            indices: The last n stages if an integer, all if None, else these stages.
            norm: Apply the final norm to the last stage's output.
            stop_early: Stop after the last stage needed.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: Return the intermediates only.

        Returns:
            What `forward_features` returns, and the outputs of the stages before downsampling and norm; or the latter.

        Raises:
            ValueError: another output format.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {output_fmt!r}")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        last = len(self.feature_info) - 1
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                y = self.norm(x) if norm and i == last else x
                intermediates.append(y.permute(0, 3, 1, 2).contiguous() if output_fmt == "NCHW" else y)
        if intermediates_only:
            return intermediates
        if i == last:
            x = self.norm(x)
        return x, intermediates

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last one needed, and on request norm and head; returns the stages kept."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        if max_index < len(self.stages) - 1:
            # the norm and the classifier fit the last stage only
            prune_norm = prune_head = True
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        self.stages = self.stages[: max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) to the normalised map of the last stage (b, h', w', num_features)."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; with `pre_logits`, only pool."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) of any size to logits (b, num_classes)."""
        return self.forward_head(self.forward_features(x))


def init_module(module: nn.Module, name: str = "", needs_reset: bool = True) -> None:
    """Truncated normal weights and no bias for a Linear; other modules reset themselves, if they need it."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif needs_reset and hasattr(module, "reset_parameters"):
        module.reset_parameters()
