"""Make an ordinary checkpoint, which every command reads, of one that a sharded training wrote.

python tools/consolidate.py --checkpoint RUN/checkpoint-9.sharded --output weights.pth.tar
python tools/consolidate.py --checkpoint RUN --output RUN/last.pth.tar

Of a run folder the checkpoint that is furthest in training is taken. A sharded training does this by itself at its end.
"""

from pathlib import Path

from ..errors import UserError
from ._boundary import bounded
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    add_options(parser, "checkpoint", help="sharded checkpoint, or the folder of a run")
    parser.add_argument("--output", metavar="FILE", help="file to write")
    parser.former_positionals = ["--checkpoint", "--output"]
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse_args(argv)
    if not args.checkpoint or not args.output:
        raise UserError("give --checkpoint, a sharded one or the folder of a run, and --output, a file to write")
    from ..engine.training.checkpoints import position
    from ..engine.training.sharded_checkpoints import EXTENSION, read_run, sharded_checkpoints, write_consolidated

    path = Path(args.checkpoint)
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give a sharded checkpoint ({EXTENSION}) or the folder of a run")
    if not path.name.endswith(EXTENSION):
        readable, problems = [], []
        for found in sharded_checkpoints(path):
            try:
                readable.append((position(read_run(found)), found))
            except UserError as error:
                problems.append(str(error))
        for problem in problems:
            print(f"{problem}; passed over")
        if not readable:
            raise UserError(f"{path} holds no sharded checkpoint that is readable ({EXTENSION})")
        path = max(readable)[1]
    write_consolidated(path, Path(args.output))
    print(f"{args.output}: made of {path}")
    return 0
