"""The options by which validate, predict, benchmark and export read a classifier; they keep the names of training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ._arguments import add_image_limits
from ._vocabulary import add_options

if TYPE_CHECKING:
    import torch

    from ..engine.inference.classifier import Classifier


def add_model_options(parser: argparse.ArgumentParser, *, model_help: str | None = "timm model name") -> None:
    """Add which model and which of its weights; `model_help` None leaves --model to the command."""
    group = parser.add_argument_group("model; a run's checkpoint says all of it, and an option overrides that")
    if model_help is not None:
        add_options(group, "model", help=model_help)
    add_options(group, "model-kwargs", "scan", "checkpoint", "pretrained", "weights", "use-ema")
    add_options(group, "num-classes", "in-chans", "gp")


def add_image_options(parser: argparse.ArgumentParser, *, sweep: bool = False) -> None:
    """Add how images are prepared; with `sweep` several sizes and crops are taken."""
    group = parser.add_argument_group("images; a run's checkpoint says all of it, and an option overrides that")
    several: dict[str, Any] = {"nargs": "+"} if sweep else {}
    add_options(group, "img-size", "crop-pct", **several)
    add_options(group, "crop-mode", "interpolation", "mean", "std", "input-img-mode")
    add_image_limits(group)
    add_options(group, "bad-images")


def add_device_options(parser: argparse.ArgumentParser, *further: str) -> argparse._ArgumentGroup:
    """Add where a command computes, and further options of the vocabulary about how; returns their group."""
    group = parser.add_argument_group("device and precision")
    add_options(group, "device", *further)
    return group


def read_classifier(
    args: argparse.Namespace,
    name: str | None,
    device: torch.device | str = "cpu",
    *,
    images: dict[str, Any] | None = None,
    **model_kwargs: Any,
) -> Classifier:
    """Read the classifier that options name.

    Args:
        args: Parsed options of `add_model_options`, and of `add_image_options` where the command has them.
        name: Model name, or None for that of the checkpoint.
        device: Where the model goes.
        images: Options of images in place of those of `args`.
        model_kwargs: Constructor arguments above all others.

    Raises:
        UserError: As for `load_classifier`; or there is no model at all.
    """
    from ..engine.inference.classifier import load_classifier

    options = {key: getattr(args, key, None) for key in ("img_size", "crop_pct", "crop_mode", "mean", "std")}
    options |= {"interpolation": getattr(args, "interpolation", None) or None} | (images or {})
    low_high = getattr(args, "pixel_range", None)
    if name is None and not args.checkpoint:
        raise UserError("neither --model nor --checkpoint given")
    return load_classifier(
        name,
        args.checkpoint,
        weights=args.weights,
        device=device,
        pretrained=args.pretrained,
        num_classes=args.num_classes,
        in_chans=args.in_chans,
        global_pool=args.gp,
        model_kwargs=dict(args.model_kwargs) | ({"scan": args.scan} if args.scan else {}) | model_kwargs,
        data_options=options,
        image_mode=getattr(args, "input_img_mode", None),
        pixel_range=(low_high[0], low_high[1]) if low_high else None,
        **({"max_pixels": args.max_pixels} if hasattr(args, "max_pixels") else {}),
    )
