"""Options of training and testing detectors and segmenters, which are mmengine's in the words of all commands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import UserError
from ._parser import CommandParser, command_parser

if TYPE_CHECKING:
    from ..openmmlab.launching import Launch


def launch_parser(module: str, doc: str | None) -> CommandParser:
    """Return the parser of a command that works through mmengine's Runner."""
    parser = command_parser(module, doc)
    group = parser.add_argument_group("what is run")
    add = group.add_argument
    add("-c", "--config", metavar="FILE", help="a config of mmdet or mmseg")
    add("--data-dir", metavar="DIR", help="folder of the data, in place of the config's")
    add("--output", metavar="DIR", help="folder for logs, checkpoints and pictures (default: work/<config's name>)")
    add(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings that override the config's, as train_dataloader.batch_size=4",
    )
    add(
        "--launcher",
        choices=("none", "pytorch", "slurm", "mpi"),
        help="how the processes were started (default: pytorch under torchrun, else none)",
    )
    parser.former |= {"--work-dir": "--output", "--data-root": "--data-dir"}
    parser.former_positionals = ["--config"]
    return parser


def launch_of(args: argparse.Namespace) -> Launch:
    """Return what the options of `launch_parser` say.

    Raises:
        UserError: There is no config, or a setting is no KEY=VALUE.
    """
    from ..openmmlab.launching import Launch, read_settings

    if not args.config:
        raise UserError("no config given: --config FILE, a config of mmdet or mmseg")
    for word in args.cfg_options:
        if "=" not in word.lstrip("="):
            raise UserError(f"--cfg-options takes KEY=VALUE, got {word!r}")
    return Launch(args.config, args.output, args.data_dir, read_settings(args.cfg_options), args.launcher)
