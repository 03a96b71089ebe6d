"""What the commands that look at a model over an image share: the model, the image, and the written picture."""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import UserError
from ..files import write_atomically
from ._help import HelpFormatter
from ._inference_options import add_image_options, add_model_options, read_classifier
from ._parser import CommandParser, add_general_options

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from ..engine.inference.classifier import Classifier

Result = TypeVar("Result")


def add_command(commands: Any, name: str, **told: str) -> CommandParser:
    """Add a command of a command, which takes what every command takes."""
    parser: CommandParser = commands.add_parser(name, formatter_class=HelpFormatter, **told)
    add_general_options(parser)
    return parser


def add_picture_options(parser: argparse.ArgumentParser, *, images: bool = True) -> None:
    """Add the model's and the images' options, and where the picture goes."""
    if images:
        parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files or folders of them")
        parser.add_argument("--max-images", type=int, default=4, metavar="N", help="images at most")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="PNG", help="picture to write")
    add_model_options(parser)
    add_image_options(parser)


def check_png(path: Path) -> None:
    """Refuse an output that is no picture, before work begins."""
    if path.suffix.lower() != ".png":
        raise UserError(f"expected an output file that ends in .png, found {path}")


def save(figure: "Figure", path: Path, *, trim: bool = True) -> None:
    """Write a picture, without its empty margins, and say where."""
    margins = {"bbox_inches": "tight", "pad_inches": 0.08} if trim else {}
    write_atomically(path, functools.partial(figure.savefig, format="png", **margins))
    print(path)


def attempt(work: Callable[[], Result]) -> Result:
    """What an analysis returns; what it refuses as a sentence to the user."""
    try:
        return work()
    except (ValueError, NotImplementedError, ImportError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())[:400]) from error


def read_model(args: argparse.Namespace) -> "Classifier":
    """The classifier that the options name, for images of the size asked for."""
    classifier = read_classifier(args, args.model)
    size = classifier.data_config["input_size"][1:]
    if args.img_size and hasattr(classifier.model, "set_input_size"):
        attempt(lambda: classifier.model.set_input_size(tuple(size)))  # type: ignore[operator]
    return classifier


def read_images(args: argparse.Namespace, classifier: "Classifier") -> list[tuple[str, "Tensor", "Tensor"]]:
    """Name, what is shown (h, w[, 3]) from 0 to 1, and the model's input (1, c, h, w), of each image.

    Raises:
        UserError: There is no image, or one cannot be read.
    """
    import torch
    from timm.data import create_transform

    from ..engine.data.images import ChannelTransform
    from ..engine.inference.prediction import find_images

    if args.max_images < 1:
        raise UserError(f"--max-images takes at least 1, found {args.max_images}")
    config = classifier.data_config
    transform = ChannelTransform(
        create_transform(
            config["input_size"],
            is_training=False,
            use_prefetcher=True,
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )
    )
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    found = []
    for path in find_images(args.images)[: args.max_images]:
        pixels = torch.as_tensor(transform(classifier.reader.read(path, str(path)))).float() / 255
        shown = pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels.mean(0)
        found.append((path.name, shown, ((pixels - mean) / std)[None]))
    return found


def module_named(model: Any, name: str | None, candidates: list[str], what: str) -> str:
    """The last of the candidates, or the one that is named.

    Raises:
        UserError: There is none, or it is not among them.
    """
    from ..errors import nearest

    if not candidates:
        raise UserError(f"{type(model).__name__} has no layer with {what}")
    if name is None:
        return candidates[-1]
    if name not in candidates:
        shown = ", ".join(candidates if len(candidates) <= 6 else [*candidates[:3], "...", *candidates[-2:]])
        raise UserError(f"there is no layer {name!r} with {what}{nearest(name, candidates)}; there are {shown}")
    return name


def check_levels(classifier: "Classifier", levels: list[int]) -> None:
    """Refuse feature levels that a model does not have."""
    model: Any = classifier.model
    if not hasattr(model, "forward_intermediates"):
        raise UserError(f"{classifier.name} has no feature maps (forward_intermediates)")
    count = len(model.feature_info)
    for level in levels:
        if not -count <= level < count:
            raise UserError(f"feature level {level} does not exist: {classifier.name} has levels 0 to {count - 1}")
