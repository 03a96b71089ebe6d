"""Convert the authors' checkpoint of a detector or segmenter.

python tools/convert.py --config mask_rcnn_vmamba_tiny_s1l8_1x_coco.py --checkpoint theirs.pth --output ours.pth
python tools/convert.py --config mine.py --checkpoint authors.pth --output converted.pth

The output holds the weights alone and loads with `load_from` and tools/openmmlab_test.py. Classifiers' files need no
conversion: `timm.create_model` and the backbone's `pretrained` read them as they are.
"""

import os

from ..errors import UserError
from ..files import write_atomically
from ._boundary import bounded
from ._parser import CommandParser, command_parser
from ._vocabulary import add_options


def build_parser() -> CommandParser:
    """Return the parser of the command."""
    parser = command_parser(__name__, __doc__)
    parser.add_argument("-c", "--config", metavar="FILE", help="the config that describes the model")
    add_options(parser, "checkpoint", help="the authors' file")
    parser.add_argument("--output", metavar="FILE", help="file to write")
    parser.former_positionals = ["--config", "--checkpoint", "--output"]
    return parser


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args = build_parser().parse_args(argv)
    for option in ("config", "checkpoint", "output"):
        if not getattr(args, option):
            raise UserError(f"--{option} FILE is not given")
    if not os.path.isfile(args.config):
        raise UserError(f"no config at {args.config!r}")
    import torch
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    from ..checkpoints import read
    from ..openmmlab.channels import fill_channels
    from ..openmmlab.conversion import convert
    from ..openmmlab.requirements import check_installed

    cfg = Config.fromfile(args.config)
    check_installed(cfg.get("default_scope"))
    try:
        fill_channels(cfg)
        cfg.model.backbone.pretrained = False
        init_default_scope(cfg.default_scope)
        weights = convert(read(args.checkpoint).weights, MODELS.build(cfg.model))
    except ValueError as error:
        raise UserError(str(error)) from error
    write_atomically(args.output, lambda file: torch.save({"state_dict": weights}, file))
    print(f"{args.output}: {len(weights)} tensors")
    return 0
