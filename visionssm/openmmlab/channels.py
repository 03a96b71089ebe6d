"""Does a neck or a head read the channels that the backbone gives? Said before the first iteration."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn


def check_channels(model: nn.Module) -> None:
    """Compare a model's neck, or without one its decode heads, with its backbone's outputs.

    Args:
        model: A detector or segmenter. Without a list `backbone.out_channels` nothing is known and checked.

    Raises:
        ValueError: `in_channels` differ; the message gives the right ones.
    """
    channels = getattr(getattr(model, "backbone", None), "out_channels", None)
    if not isinstance(channels, (list, tuple)):
        return
    channels = list(channels)
    neck = getattr(model, "neck", None)
    if isinstance(neck, nn.Sequential):
        neck = neck[0]
    if neck is not None:
        found = getattr(neck, "in_channels", None)
        if isinstance(found, int):
            _compare(f"the neck {type(neck).__name__} (which reads the last map)", found, channels[-1], model)
        elif found is not None:
            _compare(f"the neck {type(neck).__name__}", list(found), channels, model)
        return
    for name in ("decode_head", "auxiliary_head"):
        heads = getattr(model, name, None)
        for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
            index = getattr(head, "in_index", None)
            if index is None:
                continue
            several = not isinstance(index, int)
            wrong = [i for i in (index if several else [index]) if not -len(channels) <= i < len(channels)]
            if wrong:
                raise ValueError(
                    f"{name}.in_index names maps {wrong}, but the backbone {model.backbone.name!r} "
                    f"returns {len(channels)}"
                )
            expected = [channels[i] for i in index] if several else channels[index]
            found = list(head.in_channels) if several and not isinstance(head.in_channels, int) else head.in_channels
            if head.input_transform == "resize_concat":
                expected = sum(expected)
            _compare(f"{name} ({type(head).__name__}, in_index {index})", found, expected, model)


def _compare(what: str, found, expected, model: nn.Module) -> None:
    if found != expected:
        raise ValueError(
            f"{what} has in_channels={found}, but the backbone {model.backbone.name!r} with out_indices="
            f"{model.backbone.out_indices} gives {expected}; write in_channels={expected}"
        )


@HOOKS.register_module()
class ChannelCheckHook(Hook):
    """Runs `check_channels` before training, validation or testing begins."""

    priority = "VERY_HIGH"

    def before_run(self, runner) -> None:
        model = runner.model
        check_channels(getattr(model, "module", model))
