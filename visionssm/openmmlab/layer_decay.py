"""Learning rates that shrink with the depth of a backbone's layer, for mmengine's optimizers."""

from collections import defaultdict
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn
from torch.optim import Optimizer

_OPTIONS = {"layer_decay"}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Groups parameters by layer of the backbone, as its `group_matcher` says, and by weight decay.

    `paramwise_cfg=dict(layer_decay=0.8)`: a parameter of layer i of n (0 is the stem) learns at 0.8 ** (n + 1 - i) of
    the rate, necks and heads at the rate. Vectors, and what the backbone's `no_weight_decay` names, are not decayed.

    Raises:
        ValueError: another option, a decay outside (0, 1], or a backbone that does not number its layers.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = set(self.paramwise_cfg) - _OPTIONS
        if unknown:
            raise ValueError(f"paramwise_cfg knows {sorted(_OPTIONS)} here, got {sorted(unknown)}")
        decay = self.paramwise_cfg.get("layer_decay", 1.0)
        if not 0 < decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {decay}")
        if self.base_lr is None or self.base_wd is None:
            raise ValueError("the optimizer needs lr and weight_decay, which layer decay scales")

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The optimizer's groups for a detector or segmenter with a `backbone`."""
        backbone: Any = getattr(model, "backbone", None)
        if not hasattr(backbone, "layer_id"):
            raise ValueError(
                f"layer decay needs a model whose backbone is a VisionSSMBackbone, got {type(backbone).__name__}"
            )
        layer_decay = self.paramwise_cfg.get("layer_decay", 1.0)
        spared = backbone.no_weight_decay()
        groups = defaultdict(list)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            inside = name.startswith("backbone.")
            short = name.removeprefix("backbone.")
            layer = backbone.layer_id(short) if inside else backbone.num_layers
            decayed = parameter.ndim > 1 and not (inside and short in spared)
            groups[layer, decayed].append(parameter)
        return [
            dict(
                params=parameters,
                layer=layer,
                lr=self.base_lr * layer_decay ** (backbone.num_layers - layer),
                weight_decay=self.base_wd if decayed else 0.0,
            )
            for (layer, decayed), parameters in sorted(groups.items())
        ]

    def __call__(self, model: nn.Module):
        """The optimizer wrapper for a model, possibly inside a distributed wrapper."""
        model = getattr(model, "module", model)
        cfg = dict(self.optimizer_cfg, params=self.parameter_groups(model))
        wrapper = dict({"type": "OptimWrapper"}, **self.optim_wrapper_cfg)
        return OPTIM_WRAPPERS.build(wrapper, default_args=dict(optimizer=OPTIMIZERS.build(cfg)))


def describe_groups(optimizer: Optimizer) -> str:
    """A table of an optimizer's groups: layer, learning rate, weight decay, number of tensors and of values."""
    lines = [f"{'layer':>5} {'lr':>12} {'weight decay':>12} {'tensors':>8} {'values':>12}"]
    for group in optimizer.param_groups:
        values = sum(p.numel() for p in group["params"])
        lines.append(
            f"{group.get('layer', '-'):>5} {group['lr']:>12.4g} {group['weight_decay']:>12.4g} "
            f"{len(group['params']):>8} {values:>12,}"
        )
    return "\n".join(lines)
