"""The options by which validate, predict, benchmark and export read a classifier; they keep the names of training."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ._arguments import add_image_limits
from ._parser import KeyValues

if TYPE_CHECKING:
    import torch

    from ..engine.inference.classifier import Classifier

WEIGHTS = ("auto", "raw", "ema")  # visionssm.checkpoints.WEIGHTS, which a help must not wait for


def add_model_options(parser: argparse.ArgumentParser, *, model_help: str | None = "timm model name") -> None:
    """Add which model and which of its weights; `model_help` None leaves --model to the command."""
    group = parser.add_argument_group("model; a run's checkpoint says all of it, and an option overrides that")
    add = group.add_argument
    if model_help is not None:
        add("--model", metavar="NAME", help=model_help)
    add("--model-kwargs", nargs="*", default={}, action=KeyValues, metavar="KEY=VALUE", help="constructor arguments")
    add("--checkpoint", metavar="FILE", help="checkpoint of a run or an author's weight file")
    add("--pretrained", action="store_true", help="use the published weights")
    add(
        "--weights",
        choices=WEIGHTS,
        default="auto",
        help="which weights of the file; auto takes the averaged ones where there are any",
    )
    add("--use-ema", dest="weights", action="store_const", const="ema", help="the same as --weights ema")
    add("--num-classes", type=int, metavar="N", help="classes of the model")
    add("--in-chans", type=int, metavar="N", help="input channels")
    add("--gp", metavar="POOL", help="global pooling type")


def add_image_options(parser: argparse.ArgumentParser, *, sweep: bool = False) -> None:
    """Add how images are prepared; with `sweep` several sizes and crops are taken."""
    group = parser.add_argument_group("images; a run's checkpoint says all of it, and an option overrides that")
    add = group.add_argument
    nargs: dict[str, Any] = {"nargs": "+"} if sweep else {}
    more = "; several sweep it" if sweep else ""
    add("--img-size", type=int, metavar="N", help=f"input height and width{more}", **nargs)
    add("--crop-pct", type=float, metavar="X", help=f"crop size / resized size{more}", **nargs)
    add("--crop-mode", metavar="NAME", help="center, squash or border")
    add("--interpolation", default="", metavar="NAME", help="resampling")
    add("--mean", nargs="+", type=float, metavar="X", help="mean of the input channels, 0 to 1")
    add("--std", nargs="+", type=float, metavar="X", help="deviation of the input channels, 0 to 1")
    add("--input-img-mode", metavar="MODE", help="8-bit Pillow mode that images are converted to")
    add_image_limits(group)
    add(
        "--bad-images", choices=("refuse", "skip"), default="refuse", help="stop at an unreadable image or leave it out"
    )


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
        model_kwargs=dict(args.model_kwargs) | model_kwargs,
        data_options=options,
        image_mode=getattr(args, "input_img_mode", None),
        pixel_range=(low_high[0], low_high[1]) if low_high else None,
        **({"max_pixels": args.max_pixels} if hasattr(args, "max_pixels") else {}),
    )
