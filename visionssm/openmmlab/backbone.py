"""A timm model as a backbone of mmdet and mmseg."""

import os
from collections.abc import Sequence
from typing import Any

import timm
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import visionssm

from ..errors import nearest
from .weights import load_classifier, read_backbone

_STRIDES = (4, 8, 16, 32, 64)
_NORMS = ("layernorm", "model", None)


@MODELS.register_module()
class VisionSSMBackbone(BaseModule):
    """A classification model without its classifier, giving feature maps.

    Any model of timm's registry that has `forward_intermediates` works, this package's are meant. The channels and
    strides of the maps are `out_channels` and `out_strides`, the numbers of the levels `out_indices`.

    Args:
        name: Name of the model, as for `timm.create_model`.
        pretrained: Weights of the classifier, loaded strictly: True for the published ones, or the path of a file, in
            the authors' layout or of this package's training.
        out_indices: Levels to return, ascending: stages of a hierarchical model, blocks of a plain one. By default the
            last levels of the first four of the strides 4, 8, 16, 32, 64 that there are; the ends of the four quarters
            of a plain model.
        out_strides: Instead of `out_indices`: the last level of each of these strides.
        out_norm: Norm of each output, one for all or one per output: "layernorm" (a new one over channels, as the
            papers do), "model" (the model's own final norm, for the last level only), None.
        out_norm_eps: Epsilon of the new norms.
        frozen_stages: -1 trains all; 0 freezes the stem, k also the first k stages (blocks of a plain model) with the
            norms of their outputs: no gradients, evaluation mode.
        norm_eval: Keep batch norms in evaluation mode.
        with_cp: Recompute blocks in the backward instead of storing what they need.
        drop_path_rate: Stochastic depth of the last block; None for the model's default.
        scan: Name of the scan order; None for the model's default.
        model_args: Further arguments of the model's constructor.
        feature_stream: For plain models, False returns what the blocks add to the stream in place of the stream
            (LocalVim's published dense features).
        init_cfg: mmengine's; `dict(type="Pretrained", checkpoint=..., prefix="backbone.")` loads a detector's backbone,
            strictly. Not together with `pretrained`.

    Raises:
        ValueError: an unknown name, level or norm, or arguments that exclude each other.
        CheckpointError: the weights do not fit.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str | os.PathLike = False,
        out_indices: Sequence[int] | None = None,
        out_strides: Sequence[int] | None = None,
        out_norm: str | None | Sequence[str | None] = "layernorm",
        out_norm_eps: float = 1e-5,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_path_rate: float | None = None,
        scan: str | None = None,
        model_args: dict[str, Any] | None = None,
        feature_stream: bool | None = None,
        init_cfg: dict | list | None = None,
    ):
        if pretrained and init_cfg is not None:
            raise ValueError(
                "give either pretrained (a classifier's weights) or init_cfg, not both: init_cfg would "
                "overwrite the weights"
            )
        super().__init__(init_cfg)
        _check_name(name)
        given = dict(drop_path_rate=drop_path_rate, scan=scan)
        args = {**(model_args or {}), **{k: v for k, v in given.items() if v is not None}}
        model: Any = load_classifier(name, pretrained, args)
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(f"{name!r} cannot be a backbone: it has no forward_intermediates")
        if feature_stream is not None:
            if not hasattr(model, "feature_stream"):
                raise ValueError(f"feature_stream is an option of this package's plain models, not of {name!r}")
            model.feature_stream = feature_stream

        levels = [(info["num_chs"], info["reduction"], info["module"]) for info in model.feature_info]
        self.name = name
        self.out_indices = _choose_levels(name, [stride for _, stride, _ in levels], out_indices, out_strides)
        self.out_channels = tuple(levels[i][0] for i in self.out_indices)
        self.out_strides = tuple(levels[i][1] for i in self.out_indices)
        self.norm_eval = norm_eval

        # names of layers, before anything is pruned
        self.layer_ids = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        stage_of = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
        output_stages = [
            max((stage for parameter, stage in stage_of.items() if parameter.startswith(f"{levels[i][2]}.")), default=0)
            for i in self.out_indices
        ]
        self.frozen_stages = frozen_stages
        if not -1 <= frozen_stages <= max(output_stages):
            raise ValueError(
                f"frozen_stages must be from -1 (none) to {max(output_stages)} for {name!r} with "
                f"out_indices {self.out_indices}, got {frozen_stages}"
            )

        self.out_norms = nn.ModuleList(self._make_norms(model, out_norm, out_norm_eps, len(levels) - 1))
        model.prune_intermediate_layers(list(self.out_indices), prune_norm=True)
        if with_cp:
            model.set_grad_checkpointing(True)
        self.model = model
        self.num_layers = max(self.layer_ids[name] for name, _ in model.named_parameters()) + 1
        self._frozen = {f"model.{name}" for name, stage in stage_of.items() if stage <= frozen_stages} | {
            f"out_norms.{i}.{name}"
            for i, stage in enumerate(output_stages)
            if stage <= frozen_stages
            for name, _ in self.out_norms[i].named_parameters()
        }
        self._freeze()

    _is_init: bool  # of mmengine's BaseModule

    def _make_norms(self, model: Any, out_norm, eps: float, last_level: int) -> list[nn.Module]:
        one_for_all = out_norm is None or isinstance(out_norm, str)
        norms = [out_norm] * len(self.out_indices) if one_for_all else list(out_norm)
        if len(norms) != len(self.out_indices):
            raise ValueError(f"out_norm lists {len(norms)} norms for {len(self.out_indices)} outputs")
        modules: list[nn.Module] = []
        for norm, level, channels in zip(norms, self.out_indices, self.out_channels, strict=True):
            if norm not in _NORMS:
                raise ValueError(f"out_norm must be 'layernorm', 'model' or None, got {norm!r}")
            if norm == "model" and level != last_level:
                raise ValueError(f"out_norm='model' fits the last level ({last_level}) only, not level {level}")
            if norm == "model":
                modules.append(_OverChannels(model.norm))
            else:
                modules.append(LayerNorm2d(channels, eps=eps) if norm else nn.Identity())
        return modules

    def _freeze(self) -> None:
        frozen = [p for name, p in self.named_parameters() if name in self._frozen]
        for parameter in frozen:
            parameter.requires_grad_(False)
        ids = set(map(id, frozen))
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and all(id(p) in ids for p in parameters):
                module.eval()  # and what it holds: drop path has no parameters

    def train(self, mode: bool = True) -> "VisionSSMBackbone":
        """Set the mode, leaving frozen stages (and with `norm_eval` batch norms) in evaluation mode."""
        super().train(mode)
        if mode:
            self._freeze()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def init_weights(self) -> None:
        """Load what `init_cfg` names; the model initialised itself, or was loaded, at construction.

        mmengine would call the timm model's own `init_weights` here, which overwrites loaded weights.

        Raises:
            CheckpointError: the file does not fill the backbone exactly.
        """
        if self.init_cfg is None or self._is_init:
            self._is_init = True
            return
        if not isinstance(self.init_cfg, dict) or self.init_cfg.get("type") != "Pretrained":
            raise ValueError(
                f"init_cfg must be None or of type 'Pretrained', got {self.init_cfg}: the model "
                "initialises itself as published"
            )
        read_backbone(self, self.init_cfg["checkpoint"], self.init_cfg.get("prefix", ""))
        self._is_init = True

    def layer_id(self, parameter: str) -> int:
        """Number of the layer of a parameter of this backbone: 0 for the stem, `num_layers` for the output norms."""
        if parameter.startswith("model."):
            return self.layer_ids[parameter.removeprefix("model.")]
        return self.num_layers

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the model's training does not decay."""
        spared: set[str] = getattr(self.model, "no_weight_decay", set)()
        return {f"model.{name}" for name in spared}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (b, c, h, w) of any size to contiguous maps (b, out_channels[i], about h / out_strides[i], ...)."""
        maps = self.model.forward_intermediates(
            x, indices=list(self.out_indices), output_fmt="NCHW", intermediates_only=True
        )
        return tuple(norm(y).contiguous() for norm, y in zip(self.out_norms, maps, strict=True))


class _OverChannels(nn.Module):
    """A norm over the last axis, applied to the channels of a map (b, c, h, w)."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _check_name(name: str) -> None:
    if timm.is_model(name):
        return
    hint = nearest(str(name).split(".")[0], visionssm.list_models() + timm.list_models())
    raise ValueError(f"there is no model {name!r}{hint} (visionssm.list_models() lists this package's)")


def _choose_levels(
    name: str,
    strides: Sequence[int],
    indices: Sequence[int] | None,
    wanted: Sequence[int] | None,
) -> tuple[int, ...]:
    if indices is not None and wanted is not None:
        raise ValueError("give out_indices or out_strides, not both")
    if indices is not None:
        indices = tuple(i + len(strides) if i < 0 else i for i in indices)
        if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= len(strides):
            raise ValueError(
                f"out_indices must be ascending levels of {name!r}, from 0 to {len(strides) - 1}, got {list(indices)}"
            )
        return indices
    last = {stride: i for i, stride in enumerate(strides)}
    if wanted is None:
        if len(last) == 1:
            if len(strides) < 4:
                raise ValueError(f"{name!r} has {len(strides)} blocks; say which ones to return by out_indices")
            return tuple(len(strides) * k // 4 - 1 for k in (1, 2, 3, 4))
        wanted = [stride for stride in _STRIDES if stride in last][:4]
    unknown = [stride for stride in wanted if stride not in last]
    if unknown or not wanted:
        raise ValueError(f"{name!r} has no level of stride {unknown}; its strides are {sorted(last)}")
    return tuple(sorted(last[stride] for stride in wanted))
