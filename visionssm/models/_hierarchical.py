"""What the hierarchical models have in common: a stem, stages, a norm and a head over maps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import ClassifierHead, calculate_drop_path_rates, get_device_dtype
from torch import Tensor, nn

from .._timm_compat import feature_take_indices
from ..layers import Stage
from ._builder import Kit, Place, VisionModel, make_kit


class HierarchicalModel(VisionModel):
    """Base of models whose stages shrink the map, for images of any size.

    A subclass hands over how its parts are made; everything that is called is given the channels, or the place of a
    block, and the `Kit` that all parts share. Maps between the parts are (b, h, w, c), or (b, c, h, w) for
    `output_fmt="NCHW"`.

    Args:
        dims: Channels of each stage, or of the first one and doubled from stage to stage.
        depths: Blocks of each stage.
        stem: stem(in_chans, dim, kit) makes what turns images into the first map; its `stride` is 4 if it has none.
        downsample: downsample(dim, dim_out, kit) makes what begins every further stage; its `stride` is 2 if it has
            none.
        block: block(place, kit) makes a block.
        stage: stage(index, downsample, blocks, norm) makes a stage of its parts; `Stage` if None.
        stage_norm: End every stage but the last with a norm, or with "all" the last one too.
        norm: norm(dim) makes the norm before the head; `norm_layer` if None.
        head: head(dim, num_classes, global_pool, drop_rate, kit) makes the head; timm's ClassifierHead if None.
        output_fmt: "NHWC" or "NCHW".
        in_chans: Channels of the image.
        num_classes: Classes; 0 for no classifier.
        global_pool: Pooling before the classifier; "" for none.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout after the projections of mixer and MLP.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        act_layer: Activation of stem and MLP, a name or a class.
        norm_layer: Norm over channels, a name or a class.
        norm_eps: Epsilon of the norms.
        weight_init: "" as published, another mode of the class, or "skip".

    Raises:
        TypeError: an unknown argument.
        ValueError: an argument is out of its range, or two do not fit each other.
    """

    runs_in_sequence = True

    def __init__(
        self,
        dims: int | Sequence[int],
        depths: Sequence[int],
        *,
        stem: Callable[[int, int, Kit], nn.Module],
        downsample: Callable[[int, int, Kit], nn.Module],
        block: Callable[[Place, Kit], nn.Module],
        stage: Callable[[int, nn.Module, list[nn.Module], nn.Module | None], Stage] | None = None,
        stage_norm: bool | str = False,
        norm: Callable[..., nn.Module] | None = None,
        head: Callable[[int, int, str, float, Kit], nn.Module] | None = None,
        output_fmt: str = "NHWC",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | type[nn.Module] = "gelu",
        norm_layer: str | type[nn.Module] = "layernorm",
        norm_eps: float | None = 1e-5,
        weight_init: str = "",
        device=None,
        dtype=None,
        **unknown: Any,
    ):
        super().__init__()
        self.check_arguments(
            unknown, weight_init, proj_drop_rate=proj_drop_rate, act_layer=act_layer, norm_layer=norm_layer
        )
        dims = [dims * 2**i for i in range(len(depths))] if isinstance(dims, int) else list(dims)
        if len(dims) != len(depths):
            raise ValueError(f"dims and depths must be of one length, got {len(dims)} and {len(depths)}")
        kit = make_kit(act_layer, norm_layer, norm_eps, proj_drop_rate, device, dtype)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.output_fmt = output_fmt
        self.num_features = dims[-1]
        self.feature_info = []

        self.stem = stem(in_chans, dims[0], kit)
        reduction = getattr(self.stem, "stride", 4)
        rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages: list[nn.Module] = []
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            down = downsample(dims[i - 1], dim, kit) if i > 0 else nn.Identity()
            reduction *= getattr(down, "stride", 2) if i > 0 else 1
            first = sum(depths[:i])
            blocks = [block(Place(i, first + j, dim, rates[i][j]), kit) for j in range(depth)]
            normed = stage_norm == "all" or (stage_norm and i < len(dims) - 1)
            parts = (down, blocks, kit.norm_layer(dim, **kit.dd) if normed else None)
            stages.append(stage(i, *parts) if stage else Stage(*parts))
            self.feature_info.append(dict(num_chs=dim, reduction=reduction, module=f"stages.{i}"))
        self.stages = nn.Sequential(*stages)
        self.norm = (norm or kit.norm_layer)(self.num_features, **kit.dd)
        self.head = (head or self._classifier_head)(self.num_features, num_classes, global_pool, drop_rate, kit)
        if weight_init != "skip":
            self.init_weights(weight_init, needs_reset=False)

    def _classifier_head(self, dim: int, num_classes: int, global_pool: str, drop_rate: float, kit: Kit) -> nn.Module:
        return ClassifierHead(
            dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt=self.output_fmt, **kit.dd
        )

    @property
    def head_hidden_size(self) -> int:
        """Channels that the classifier sees: those of the head, or twice the map's for a pool that joins two."""
        if hasattr(self.head, "hidden_size"):
            return self.head.hidden_size
        pool = getattr(self.head, "global_pool", None)
        return self.num_features * (pool.feat_mult() if hasattr(pool, "feat_mult") else 1)

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
                (r"^stages\.(\d+)\.norm", (99999,)),
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
        stage: nn.Module
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                y = self.norm(x) if norm and i == last else x
                if output_fmt != self.output_fmt:
                    y = y.permute(0, 3, 1, 2) if output_fmt == "NCHW" else y.permute(0, 2, 3, 1)
                intermediates.append(y.contiguous())
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
            self.num_features = self.feature_info[max_index]["num_chs"]
        self.stages = self.stages[: max_index + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) to the normalised map of the last stage, in `output_fmt`."""
        return self.norm(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify; with `pre_logits`, only pool."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, c, h, w) of any size to logits (b, num_classes)."""
        return self.forward_head(self.forward_features(x))
