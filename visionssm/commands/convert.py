"""Convert the authors' checkpoint of a detector or segmenter.

python tools/convert.py CONFIG INPUT OUTPUT

The output holds the weights alone and loads with `load_from` and tools/openmmlab_test.py. Classifiers' files need no
conversion: `timm.create_model` and the backbone's `pretrained` read them as they are.
"""

import argparse
import os
import sys

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from ..checkpoints import read
from ..errors import UserError
from ..files import write_atomically
from ..openmmlab.channels import fill_channels
from ..openmmlab.conversion import convert
from ..openmmlab.requirements import check_installed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the config that describes the model")
    parser.add_argument("input", help="the authors' file")
    parser.add_argument("output", help="file to write")
    args = parser.parse_args(argv)
    try:
        if not os.path.isfile(args.config):
            raise ValueError(f"no config at {args.config!r}")
        cfg = Config.fromfile(args.config)
        check_installed(cfg.get("default_scope"))
        fill_channels(cfg)
        cfg.model.backbone.pretrained = False
        init_default_scope(cfg.default_scope)
        weights = convert(read(args.input).weights, MODELS.build(cfg.model))
    except (UserError, ValueError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    write_atomically(args.output, lambda file: torch.save({"state_dict": weights}, file))
    print(f"{args.output}: {len(weights)} tensors")
    return 0
