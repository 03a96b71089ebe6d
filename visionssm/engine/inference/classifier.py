"""A trained classifier read back: the model, how its images are prepared, and its class names."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import is_model

from ...checkpoints import RUN_STATE, Checkpoint, load, read
from ...compression import integer
from ...compression.quantization import Quantization, prepare
from ...compression.rewriting import structure
from ...errors import UserError
from ..data.datasets import names_by_index
from ..data.images import MAX_PIXELS, ImageReader
from ..data.loaders import data_config
from .models import create_model, import_modules

if TYPE_CHECKING:
    from ..reports.plots import Prediction
    from .prediction import Picture


@dataclass
class Classifier:
    """A model in evaluation mode with what belongs to it.

    Attributes:
        name: timm name.
        model: Module from (b, c, h, w) normalised images to (b, classes) logits.
        data_config: Input size, normalisation, resampling and crop, as timm resolves them.
        classes: Class names by index, or None where they are not known.
        reader: Brings images to the model's channels, as in training.
        class_map: Names of a data set's classes to indices, or None where they are not known.
        from_run: The class names are those of a training run.
        class_map_given: The run was told the class map, so that labels are names of it.
        columns: `input_key` and `target_key` of the run's data.
        arguments: What the model's constructor was given.
        own_images: `val_fraction` and `labels` by which the run divided images without splits.
        quantization: What was rounded in the model, and how, as `tools/quantize.py` stores it.
    """

    name: str
    model: torch.nn.Module
    data_config: dict[str, Any]
    classes: list[str] | None
    reader: ImageReader = field(default_factory=ImageReader)
    class_map: dict[str, int] | None = None
    from_run: bool = False
    class_map_given: bool = False
    columns: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    own_images: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)

    def predict(
        self,
        images: "Picture | Sequence[Picture]",
        *,
        topk: int | None = 5,
        batch_size: int = 64,
        bad_images: str = "refuse",
    ) -> "list[Prediction]":
        """Classify images, prepared as the model was evaluated.

        Args:
            images: One or several: paths of image files, Pillow images, or uint8 arrays (height, width, channels).
            topk: Classes to return per image, best first; None for all.
            batch_size: Images per forward pass.
            bad_images: "refuse" raises on a file that cannot be read, "skip" logs it and leaves it out.

        Returns:
            For each image `names` and `probabilities` of its best classes, best first.

        Raises:
            BadImageError: An image cannot be read or used.
        """
        from .prediction import predict

        several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
        return predict(self, several, topk=topk, batch_size=batch_size, bad_images=bad_images)


def load_classifier(
    name: str | Path | None,
    checkpoint: str | Path | None = None,
    *,
    weights: str = "auto",
    device: torch.device | str = "cpu",
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    global_pool: str | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    image_mode: str | None = None,
    pixel_range: tuple[float, float] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Classifier:
    """Read a classifier.

    Args:
        name: timm name; None for a checkpoint of a training run, which says it itself. In its place the folder or
            checkpoint of a run.
        checkpoint: Folder or checkpoint of a run, or an author's weight file; None for published or initial weights.
        weights: Which weights of the file, by the rule of `visionssm.checkpoints.read`: "auto", "raw" or "ema".
        device: Where the model goes.
        pretrained: Load the published weights.
        num_classes: Classes, where neither run nor model decide.
        in_chans: Input channels, above those of the run.
        global_pool: Pooling, above that of the run.
        model_kwargs: Further constructor arguments, above those of the run.
        data_options: timm's data options (`img_size`, `crop_pct`, `mean`, ...) above those of run and model.
        image_mode: Pillow mode of the images, above that of the run.
        pixel_range: What is black and white in images that are not 8-bit, above that of the run.
        max_pixels: Larger images are refused; 0 for no limit.

    Raises:
        UserError: There is no such model, the file is damaged or of another model.
    """
    if checkpoint is None and name is not None and not is_model(os.fspath(name).split(".")[0]):
        if isinstance(name, Path) or Path(name).exists():
            name, checkpoint = None, name
    chosen = None if name is None else os.fspath(name)
    source = read(checkpoint, weights) if checkpoint else None
    stored = source.options if source else {}
    import_modules(stored.get("device_modules"))
    found = stored.get("model")
    if chosen is None:
        if found is None:
            raise UserError(
                f"checkpoint {checkpoint} does not say its model; name it with --model"
                if checkpoint
                else "neither --model nor --checkpoint given"
            )
        chosen = str(found)
    elif found and found.split(".")[0] != chosen.split(".")[0]:
        raise UserError(f"checkpoint {checkpoint} is of model {found!r}, expected {chosen!r}")
    kwargs = dict(stored.get("model_kwargs") or {}) | dict(model_kwargs or {})
    if source and source.removed:
        kwargs.setdefault("removed", source.removed)
    arguments = {
        "in_chans": in_chans or stored.get("in_chans"),
        "global_pool": stored.get("gp") if global_pool is None else global_pool,
    } | kwargs
    model = create_model(
        chosen,
        pretrained=pretrained and not checkpoint,
        num_classes=num_classes if num_classes is not None else stored.get("num_classes"),
        **arguments,
    )
    quantization = dict((source.content.get("quantization") if source else None) or {})
    if source:
        _fill(model, source, quantization)
    facts = source.run.get("facts", {}) if source else {}
    channels = kwargs.get("in_chans") or in_chans or stored.get("in_chans")
    config = data_config(data_options or {}, (model.pretrained_cfg or {}) | facts.get("data_config", {}), channels)
    stored_range = facts.get("pixel_range")
    reader = ImageReader(
        config["input_size"][0],
        image_mode or facts.get("image_mode") or stored.get("input_img_mode"),
        pixel_range or (tuple(stored_range) if stored_range else None),
        max_pixels,
    )
    names = facts.get("classes")
    class_map = facts.get("class_map") or ({name: index for index, name in enumerate(names)} if names else None)
    return Classifier(
        chosen,
        model.to(device).eval(),
        config,
        names_by_index(class_map) or imagenet_classes(model),
        reader,
        class_map or imagenet_synsets(model),
        class_map is not None,
        facts.get("class_map_given", bool(stored.get("class_map"))),
        facts.get("columns") or {key: stored.get(key) for key in ("input_key", "target_key")},
        {key: value for key, value in arguments.items() if value is not None},
        facts.get("own_images") or {},
        quantization,
    )


def _fill(model: torch.nn.Module, source: Checkpoint, quantization: Mapping[str, Any]) -> None:
    """Load a file's weights; a quantised file's into the layers that it was made with.

    Raises:
        UserError: They are not those of the model, or the file says nothing that is known of how it was quantised.
    """
    if not quantization:
        load(source, model)
        return
    told = dict(quantization)
    method = told.pop("method", None)
    try:
        if method in integer.METHODS:
            integer.load_integers(model, source.weights, told["text"])
        elif method == "simulated":
            structure(model, told.pop("steps"))
            prepare(model, Quantization(**told))
            load(source, model)
        else:
            raise UserError(f"checkpoint {source.path} was quantised by {method!r}, which is unknown here")
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"checkpoint {source.path} does not say how it was quantised: {error}") from error


def portable_checkpoint(classifier: Classifier, checkpoint: str | Path | None, weights: str = "auto") -> dict[str, Any]:
    """What a file holds from which `load_classifier` builds a changed classifier anew, without being told anything.

    Args:
        classifier: What is stored: its weights, model, preparation of images and classes.
        checkpoint: The file that it was read from; what a run says of itself there is kept.
        weights: As for `load_classifier`.
    """
    source = read(checkpoint, weights) if checkpoint else None
    model, config = classifier.model, classifier.data_config
    kwargs = dict(classifier.arguments)
    own = {"in_chans": kwargs.pop("in_chans", None), "gp": kwargs.pop("global_pool", None)}
    if removed := getattr(model, "removed", ()):
        kwargs["removed"] = list(removed)
    options = dict(source.options) if source else {}
    options |= own | {"model": classifier.name, "model_kwargs": kwargs, "num_classes": model.num_classes}
    facts = dict(source.run.get("facts", {})) if source else {}
    facts |= {
        "classes": classifier.classes if classifier.from_run else None,
        "class_map": classifier.class_map if classifier.from_run else None,
        "data_config": {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()},
        "image_mode": classifier.reader.mode,
        "pixel_range": classifier.reader.pixel_range and list(classifier.reader.pixel_range),
    }
    return {
        "arch": classifier.name,
        "state_dict": {name: value.detach().cpu() for name, value in model.state_dict().items()},
        "args": argparse.Namespace(**options),
        "task_state": {RUN_STATE: {"facts": facts}},
    }


def imagenet_synsets(model: torch.nn.Module) -> dict[str, int] | None:
    """Return the synsets by which ImageNet's folders are called, to the indices of a model with published weights."""
    info = _imagenet(model)
    return None if info is None else {name: index for index, name in enumerate(info.label_names())}


def imagenet_classes(model: torch.nn.Module) -> list[str] | None:
    """Return ImageNet's class descriptions for a model with one of its known class sets."""
    info = _imagenet(model)
    classes = getattr(model, "num_classes", 0)
    return None if info is None else [info.index_to_description(index) for index in range(classes)]


def _imagenet(model: torch.nn.Module) -> ImageNetInfo | None:
    if not getattr(model, "pretrained_cfg", None) or model.num_classes not in (1000, 11221, 11821, 21841, 21843, 12000):
        return None
    subset = infer_imagenet_subset(model)
    return ImageNetInfo(subset) if subset else None
