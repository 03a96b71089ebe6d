"""Loading a backbone's weights: through timm from a classifier's file, or from a detector's checkpoint."""

import os
from typing import Any

import timm
from torch import nn

import visionssm

from ..checkpoints import check_same, load, read


def load_classifier(name: str, pretrained: bool | str | os.PathLike, args: dict[str, Any]) -> nn.Module:
    """Build a model of timm's registry without classifier, with published weights, a file's, or none.

    Args:
        name: Name of the model.
        pretrained: True for the published weights, the path of a file, or False.
        args: Arguments of the model's constructor.

    Raises:
        CheckpointError: the file is none, or its weights do not fill the model.
    """
    args = dict(args, num_classes=0)
    if isinstance(pretrained, bool):
        return timm.create_model(name, pretrained=pretrained, **args)
    path = os.fspath(pretrained)
    if name.split(".")[0] in visionssm.list_models():
        # the builder reads, converts and checks, and adapts the first convolution
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=path), **args)
    model = timm.create_model(name, **args)
    load(read(path), model)
    return model


def read_backbone(backbone: nn.Module, path: str | os.PathLike, prefix: str = "") -> None:
    """Load a backbone from a checkpoint of this package's detectors or segmenters, strictly.

    Args:
        backbone: The module to fill.
        path: The file.
        prefix: What the backbone's names begin with in the file, as "backbone.".

    Raises:
        CheckpointError: names or shapes differ.
    """
    prefix = prefix + "." if prefix and not prefix.endswith(".") else prefix
    weights = read(path).weights
    weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    check_same(
        weights,
        backbone.state_dict(),
        f"{os.fspath(path)!r} does not fit this backbone (names beginning with {prefix!r})",
    )
    backbone.load_state_dict(weights, strict=True)


def load_strictly(model: nn.Module, path: str | os.PathLike) -> None:
    """Fill a detector or segmenter from a checkpoint.

    Raises:
        CheckpointError: names or shapes differ.
    """
    weights = read(path).weights
    check_same(weights, model.state_dict(), f"{os.fspath(path)!r} does not fit the config's model")
    model.load_state_dict(weights)


def load_matching(model: nn.Module, path: str | os.PathLike) -> list[str]:
    """Fill a detector's or segmenter's backbone from a checkpoint, and what else fits: heads may tell other classes.

    Returns:
        Names of the model's tensors that the file does not fill.

    Raises:
        CheckpointError: it does not fill the backbone exactly.
    """
    weights, own = read(path).weights, model.state_dict()
    theirs, ours = ({k: v for k, v in tensors.items() if k.startswith("backbone.")} for tensors in (weights, own))
    check_same(theirs, ours, f"{os.fspath(path)!r} does not fill the backbone")
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    return [k for k in own if k not in fitting]
