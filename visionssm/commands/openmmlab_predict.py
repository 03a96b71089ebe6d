"""Detect or segment what image files show, with a model of mmdet or mmseg: a picture for each, a line for each.

python tools/openmmlab_predict.py IMAGES --config mine.py --checkpoint work/mine/epoch_12.pth --output pictures
python tools/openmmlab_predict.py one.jpg --config mine.py --checkpoint work/mine/epoch_12.pth --output pictures
"""

from __future__ import annotations

from pathlib import Path

from ._boundary import bounded
from ._inference_options import add_device_options
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files or folders of them")
    add("-c", "--config", required=True, metavar="FILE", help="configuration of the detector or segmenter")
    add_options(parser, "checkpoint", required=True, help="file of its training, or a converted one")
    add("--output", required=True, metavar="DIR", help="receives a picture for each image")
    add("--min-score", type=float, default=0.3, metavar="X", help="boxes below are left out")
    add_device_options(parser)
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    from ..engine.data.processes import resolve_device
    from ..engine.inference.prediction import find_images
    from ..openmmlab.prediction import Predictor

    images = find_images(args.images)
    predictor = Predictor(args.config, args.checkpoint, resolve_device(args.device))
    for number, image in enumerate(images):
        picture = Path(args.output) / f"{number:04d}_{image.stem}.png"
        sample = predictor(image, picture, args.min_score)
        print(f"{image} -> {picture}: {predictor.describe(sample, args.min_score)}")
    return 0
