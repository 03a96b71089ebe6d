"""Evaluate a detector or segmenter of mmdet or mmseg.

python tools/openmmlab_test.py --config mine.py --checkpoint work/mine/epoch_12.pth
python tools/openmmlab_test.py --config mine.py --checkpoint work/mine/epoch_12.pth --show-dir pictures
"""

from __future__ import annotations

from ..errors import UserError
from ._boundary import bounded
from ._openmmlab import launch_of, launch_parser
from ._parser import CommandParser
from ._vocabulary import add_options


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = launch_parser(__name__, __doc__)
    add_options(parser, "checkpoint", help="file of its training, or a converted one")
    parser.add_argument("--show-dir", metavar="DIR", help="folder that receives pictures of the predictions")
    parser.former_positionals.append("--checkpoint")
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    if not args.checkpoint:
        raise UserError("no checkpoint given: --checkpoint FILE of a training, or a converted one")
    launch = launch_of(args)
    from ..openmmlab import launching

    launching.test(launch, args.checkpoint, show_dir=args.show_dir)
    return 0
