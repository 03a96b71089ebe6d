"""A trained classifier read back: the model, how its images are prepared, and its class names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from ...checkpoints import load, read
from ...errors import UserError
from ..data.loaders import data_config
from .models import create_model


@dataclass
class Classifier:
    """A model in evaluation mode with what belongs to it.

    Attributes:
        name: timm name.
        model: Module from (b, c, h, w) normalised images to (b, classes) logits.
        data_config: Input size, normalisation, resampling and crop, as timm resolves them.
        classes: Class names by index, or None where they are not known.
    """

    name: str
    model: torch.nn.Module
    data_config: dict[str, Any]
    classes: list[str] | None


def load_classifier(
    name: str | None,
    checkpoint: str | Path | None,
    *,
    weights: str = "auto",
    device: torch.device | str = "cpu",
    pretrained: bool = False,
    num_classes: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
) -> Classifier:
    """Read a classifier.

    Args:
        name: timm name; may be left out for a checkpoint of a training run, which says it itself.
        checkpoint: A run's checkpoint or an author's weight file; None for published or initial weights.
        weights: Which weights of the file, by the rule of `visionssm.checkpoints.read`: "auto", "raw" or "ema".
        device: Where the model goes.
        pretrained: Load the published weights.
        num_classes: Classes, where neither run nor model decide.
        model_kwargs: Further constructor arguments, above those of the run.
        data_options: timm's data options (`img_size`, `crop_pct`, `mean`, ...) above those of run and model.

    Raises:
        UserError: There is no such model, the file is damaged or of another model.
    """
    source = read(checkpoint, weights) if checkpoint else None
    stored = source.options if source else {}
    found = stored.get("model")
    if name is None:
        if found is None:
            raise UserError(
                f"checkpoint {checkpoint} does not say its model; name it with --model"
                if checkpoint
                else "neither --model nor --checkpoint given"
            )
        name = found
    elif found and found.split(".")[0] != name.split(".")[0]:
        raise UserError(f"checkpoint {checkpoint} is of model {found!r}, expected {name!r}")
    kwargs = dict(stored.get("model_kwargs") or {}) | dict(model_kwargs or {})
    model = create_model(
        name,
        pretrained=pretrained and not checkpoint,
        num_classes=num_classes if num_classes is not None else stored.get("num_classes"),
        **{"in_chans": stored.get("in_chans"), "global_pool": stored.get("gp")} | kwargs,
    )
    if source:
        load(source, model)
    facts = source.run.get("facts", {}) if source else {}
    channels = kwargs.get("in_chans") or stored.get("in_chans")
    config = data_config(data_options or {}, (model.pretrained_cfg or {}) | facts.get("data_config", {}), channels)
    classes = facts.get("classes") or imagenet_classes(model)
    return Classifier(name, model.to(device).eval(), config, classes)


def imagenet_classes(model: torch.nn.Module) -> list[str] | None:
    """Return ImageNet's class descriptions for a model with one of its known class sets."""
    if not getattr(model, "pretrained_cfg", None) or model.num_classes not in (1000, 11221, 11821, 21841, 21843, 12000):
        return None
    subset = infer_imagenet_subset(model)
    if not subset:
        return None
    info = ImageNetInfo(subset)
    return [info.index_to_description(index) for index in range(model.num_classes)]
