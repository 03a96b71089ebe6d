"""Train a detector or segmenter with mmdet or mmseg.

python tools/openmmlab_train.py --config configs/detection/digits/mask_rcnn_test_vmamba_digits.py --output work/detector
python tools/openmmlab_train.py --config mine.py --output work/mine --auto-scale-lr
"""

from __future__ import annotations

from ._boundary import bounded
from ._openmmlab import launch_of, launch_parser
from ._parser import CommandParser
from ._vocabulary import add_options


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = launch_parser(__name__, __doc__)
    add_options(parser.add_argument_group("precision"), "amp", help="mixed precision; needs a GPU")
    add = parser.add_argument_group("training").add_argument
    add(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate from the config's batch size to the actual one",
    )
    add(
        "--resume",
        nargs="?",
        const="auto",
        default="",
        metavar="auto|FILE",
        help="continue from the last checkpoint of the output folder, if any (auto, or nothing after it), or from FILE",
    )
    add("--show-groups", action="store_true", help="print the optimizer's groups (layers, rates, decay) and stop")
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    launch = launch_of(args)
    from ..openmmlab import launching

    if args.show_groups:
        print(launching.groups(launch))
    else:
        launching.train(launch, amp=args.amp, auto_scale_lr=args.auto_scale_lr, resume=args.resume or None)
    return 0
