"""Loading a backbone's weights: through timm from a classifier's file, or from a detector's checkpoint."""

import os
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models import load_checkpoint
from torch import nn

import visionssm

from ..checkpoints import CheckpointError, check_checkpoint_file, inert_stand_ins, unwrap

_SHOWN = 8


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
        # the family's filter converts and checks
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=path), **args)
    check_checkpoint_file(path)
    model = timm.create_model(name, **args)
    missing = load_checkpoint(model, path, strict=False).missing_keys
    if missing:
        raise CheckpointError(_difference(f"{path!r} does not fill {name!r}", "missing", missing))
    return model


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Weights in a file of torch.save or safetensors, out of their nesting, nothing unpickled but tensors.

    Raises:
        CheckpointError: the file is no checkpoint.
    """
    path = os.fspath(path)
    check_checkpoint_file(path)
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    with inert_stand_ins():
        return unwrap(torch.load(path, map_location="cpu", weights_only=True))


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
    weights = read_state_dict(path)
    weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
    check_fit(
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
    weights = read_state_dict(path)
    check_fit(weights, model.state_dict(), f"{os.fspath(path)!r} does not fit the config's model")
    model.load_state_dict(weights)


def load_matching(model: nn.Module, path: str | os.PathLike) -> list[str]:
    """Fill a detector's or segmenter's backbone from a checkpoint, and what else fits: heads may tell other classes.

    Returns:
        Names of the model's tensors that the file does not fill.

    Raises:
        CheckpointError: it does not fill the backbone exactly.
    """
    weights, own = read_state_dict(path), model.state_dict()
    theirs, ours = ({k: v for k, v in tensors.items() if k.startswith("backbone.")} for tensors in (weights, own))
    check_fit(theirs, ours, f"{os.fspath(path)!r} does not fill the backbone")
    fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    return [k for k in own if k not in fitting]


def check_fit(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], title: str) -> None:
    """Check that weights fill a module exactly.

    Args:
        weights: What is to be loaded.
        own: State dict of the module.
        title: First line of the message.

    Raises:
        CheckpointError: names or shapes differ.
    """
    differences = {
        "missing": [k for k in own if k not in weights],
        "unexpected": [k for k in weights if k not in own],
        "of another shape": [k for k in own if k in weights and own[k].shape != weights[k].shape],
    }
    if any(differences.values()):
        raise CheckpointError(
            "\n".join([title, *(_difference("", what, names) for what, names in differences.items() if names)])
        )


def _difference(title: str, what: str, names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
    return f"{title + ': ' if title else '  '}{what} ({len(names)}): {shown}"
