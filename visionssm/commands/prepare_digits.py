"""Build data sets of real images from scikit-learn's handwritten digits, without a download.

By default single digits for classification, as an image folder; with --scenes, scenes of several digits with COCO's
boxes and masks for detection and label maps for segmentation, or in a layout of medical segmentation.
"""

from __future__ import annotations

import argparse
import sys

from ..digits.images import write_classification
from ..digits.layouts import LAYOUTS, write_layout
from ..digits.scenes import write_scenes
from ..errors import UserError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="folder that receives the data set")
    parser.add_argument("--size", type=int, help="height and width of an image of one digit (default: 32)")
    parser.add_argument("--scenes", action="store_true", help="build scenes of several digits")
    parser.add_argument(
        "--layout",
        choices=("coco", *LAYOUTS),
        default="coco",
        help="of scenes: isic for images and masks, synapse for slices (default: coco)",
    )
    parser.add_argument(
        "--num-train", type=int, help="scenes to train on (default: 800, in other layouts than coco 40)"
    )
    parser.add_argument(
        "--num-validation", type=int, help="scenes held out (default: 100, in other layouts than coco 10)"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes the split and the scenes (default: 0)")
    args = parser.parse_args(argv)
    if args.scenes and args.size is not None:
        parser.error("--size is for single digits; scenes vary in size")
    if not args.scenes and (args.num_train, args.num_validation) != (None, None):
        parser.error("--num-train and --num-validation are numbers of scenes: add --scenes")
    if args.layout != "coco" and not args.scenes:
        parser.error("--layout is one of scenes: add --scenes")
    given = {"train": args.num_train, "validation": args.num_validation} if args.scenes else {"size": args.size}
    given = {name: value for name, value in given.items() if value is not None}
    write = write_scenes if args.scenes else write_classification
    try:
        if args.layout != "coco":
            written = write_layout(args.output, args.layout, seed=args.seed, **given)
            print(f"{args.output}: {', '.join(f'{count} {split}' for split, count in written.items())} scenes")
            return 0
        manifest = write(args.output, seed=args.seed, **given)
    except UserError as error:
        print(f"prepare_digits: {error}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{count} {split}" for split, count in manifest["images"].items())
    if args.scenes:
        print(f"{args.output}: {counts} scenes with {sum(manifest['digits'].values())} digits of 10 classes")
    else:
        size = manifest["settings"]["size"]
        print(f"{args.output}: {counts} images of {size} x {size} pixels in 10 classes")
    return 0
