"""Build data sets of real images from scikit-learn's handwritten digits, without a download.

python tools/prepare_digits.py --output work/digits
python tools/prepare_digits.py --output work/scenes --scenes

By default single digits for classification, as an image folder; with --scenes, scenes of several digits with COCO's
boxes and masks for detection and label maps for segmentation, or in a layout of medical segmentation.
"""

from __future__ import annotations

from ._boundary import bounded
from ._parser import command_parser
from ._vocabulary import add_options

LAYOUTS = ("coco", "isic", "synapse")


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command_parser(__name__, __doc__)
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder that receives the data set")
    add("--size", type=int, metavar="N", help="height and width of an image of one digit; 32 when not given")
    add("--scenes", action="store_true", help="build scenes of several digits")
    add("--layout", choices=LAYOUTS, default="coco", help="of scenes: isic for images and masks, synapse for slices")
    add("--num-train", type=int, metavar="N", help="scenes to train on; 800 when not given, in other layouts 40")
    add("--num-validation", type=int, metavar="N", help="scenes held out; 100 when not given, in other layouts 10")
    add_options(parser, "seed", default=0, help="fixes the split and the scenes")
    args = parser.parse_args(argv)
    if args.scenes and args.size is not None:
        parser.error("--size is for single digits; scenes vary in size")
    if not args.scenes and (args.num_train, args.num_validation) != (None, None):
        parser.error("--num-train and --num-validation are numbers of scenes: add --scenes")
    if args.layout != "coco" and not args.scenes:
        parser.error("--layout is one of scenes: add --scenes")
    given = {"train": args.num_train, "validation": args.num_validation} if args.scenes else {"size": args.size}
    given = {name: value for name, value in given.items() if value is not None}
    from ..digits.images import write_classification
    from ..digits.layouts import write_layout
    from ..digits.scenes import write_scenes

    if args.layout != "coco":
        written = write_layout(args.output, args.layout, seed=args.seed, **given)
        print(f"{args.output}: {', '.join(f'{count} {split}' for split, count in written.items())} scenes")
        return 0
    manifest = (write_scenes if args.scenes else write_classification)(args.output, seed=args.seed, **given)
    counts = ", ".join(f"{count} {split}" for split, count in manifest["images"].items())
    if args.scenes:
        print(f"{args.output}: {counts} scenes with {sum(manifest['digits'].values())} digits of 10 classes")
    else:
        size = manifest["settings"]["size"]
        print(f"{args.output}: {counts} images of {size} x {size} pixels in 10 classes")
    return 0
