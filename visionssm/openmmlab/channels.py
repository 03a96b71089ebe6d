"""Does a neck or a head read the channels that the backbone gives? Filled in, or said before the first iteration."""

from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import nn

from .backbone import VisionSSMBackbone
from .errors import ConfigError
from .simple_fpn import SimpleFPN

_HEADS = ("decode_head", "auxiliary_head")
_READ_ONE_MAP = ("Feature2Pyramid", SimpleFPN.__name__)


def fill_channels(cfg: Config) -> None:
    """Write the channels that the first neck and the heads of a segmenter read, where a config leaves them out.

    Args:
        cfg: The config, changed in place, if its backbone is a `VisionSSMBackbone`. What it says stays, and
            `check_channels` compares it.

    Raises:
        ConfigError: a head's `in_index` names a map that the backbone does not give.
    """
    model = cfg.get("model") or {}
    neck = model.get("neck")
    first = neck[0] if isinstance(neck, (list, tuple)) and neck else neck
    missing = [part for part in [first, *_heads(model)] if part and _channels_of(part) is None]
    backbone = dict(model.get("backbone") or {}, pretrained=False)
    if not missing or _type(backbone) != VisionSSMBackbone.__name__:
        return
    with torch.device("meta"):  # without values, which takes no time and no memory
        channels = list(VisionSSMBackbone(**{k: v for k, v in backbone.items() if k != "type"}).out_channels)
    if first and _channels_of(first) is None:
        first[_key(first)] = channels[-1] if _type(first) in _READ_ONE_MAP else channels
    for head in _heads(model):
        if head.get("in_channels") is None:
            maps = _maps_of(first, channels) if first else channels
            index = head.get("in_index", -1)
            several = not isinstance(index, int)
            for i in index if several else [index]:
                if not -len(maps) <= i < len(maps):
                    raise ConfigError(f"in_index={index} of {head.type} names a map beyond the {len(maps)} there are")
            head.in_channels = [maps[i] for i in index] if several else maps[index]


def _heads(model: Any) -> list[Any]:
    found = [model.get(name) for name in _HEADS]
    return [head for one in found for head in (one if isinstance(one, (list, tuple)) else [one]) if head]


def _type(part: Any) -> str:
    return str(part.get("type")).split(".")[-1]  # without a scope


def _key(part: Any) -> str:
    return "embed_dim" if _type(part) == "Feature2Pyramid" else "in_channels"


def _channels_of(part: Any) -> Any:
    return part.get(_key(part))


def _maps_of(neck: Any, channels: list[int]) -> list[int]:
    """Channels of what a neck gives to heads."""
    if "out_channels" not in neck:  # as mmseg's Feature2Pyramid, which changes the sizes alone
        return [neck[_key(neck)]] * len(channels) if _type(neck) in _READ_ONE_MAP else channels
    return [neck.out_channels] * neck.get("num_outs", len(channels))


def check_channels(model: Any) -> None:
    """Compare a model's neck, or without one its decode heads, with its backbone's outputs.

    Args:
        model: A detector or segmenter. Without a list `backbone.out_channels` nothing is known and checked.

    Raises:
        ConfigError: `in_channels` differ; the message gives the right ones.
    """
    channels = getattr(getattr(model, "backbone", None), "out_channels", None)
    if not isinstance(channels, (list, tuple)):
        return
    channels = list(channels)
    neck: Any = getattr(model, "neck", None)
    if isinstance(neck, nn.Sequential):
        neck = neck[0]
    if neck is not None:
        found = getattr(neck, "in_channels", None)
        if isinstance(found, int):
            _compare(f"the neck {type(neck).__name__} (which reads the last map)", found, channels[-1], model)
        elif found is not None:
            _compare(f"the neck {type(neck).__name__}", list(found), channels, model)
        return
    for name in _HEADS:
        heads = getattr(model, name, None)
        head: Any
        for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
            index = getattr(head, "in_index", None)
            if index is None:
                continue
            several = not isinstance(index, int)
            wrong = [i for i in (index if several else [index]) if not -len(channels) <= i < len(channels)]
            if wrong:
                raise ConfigError(
                    f"{name}.in_index names maps {wrong}, but the backbone {model.backbone.name!r} "
                    f"returns {len(channels)}"
                )
            expected = [channels[i] for i in index] if several else channels[index]
            found = list(head.in_channels) if several and not isinstance(head.in_channels, int) else head.in_channels
            if head.input_transform == "resize_concat":
                expected = sum(expected)
            _compare(f"{name} ({type(head).__name__}, in_index {index})", found, expected, model)


def _compare(what: str, found, expected, model: Any) -> None:
    if found != expected:
        raise ConfigError(
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
