#!/usr/bin/env python
"""Convert an authors' detector or segmenter to this package's names.

    python tools/convert.py CONFIG authors.pth ours.pth

The configuration says what the weights are for: the backbone must be filled exactly, and so must the heads, where mmdet
or mmseg can build them. The result is a plain state dict, for `load_from` in a configuration.
Classifiers need no conversion: timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=...)).
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import torch

from visionssm.engine.errors import UserError
from visionssm.engine.files import write_atomically
from visionssm.models import CheckpointError


def convert(config: str, checkpoint: str, output: str) -> str:
    """Convert a file and return what was done, in words."""
    try:
        from mmengine.config import Config
        from mmengine.registry import MODELS, init_default_scope

        from visionssm.openmmlab.convert import convert_checkpoint
        from visionssm.openmmlab.weights import read_state_dict
    except ImportError as error:
        raise UserError(f"{error}") from error
    try:
        cfg = Config.fromfile(config)
    except FileNotFoundError as error:
        raise UserError(f"no configuration at {config!r}") from error
    settings = dict(cfg.get("model", {}).get("backbone") or {})
    if settings.get("type") != "VisionSSMBackbone":
        raise UserError(f"the backbone of {config} is {settings.get('type')!r}, expected 'VisionSSMBackbone'")
    settings.update(pretrained=False, init_cfg=None)
    weights = convert_checkpoint(read_state_dict(checkpoint), MODELS.build(settings))

    try:
        scope = cfg.get("default_scope", "mmengine")
        init_default_scope(scope)
        cfg.model.backbone = settings
        expected = MODELS.build(cfg.model).state_dict()
    except ImportError as error:
        heads = f"necks and heads were copied unchecked, because {scope} cannot build them here: {error}"
    else:
        heads = "necks and heads fit as well"
        different = sorted(set(expected) ^ set(weights)) + [
            k for k in set(expected) & set(weights) if expected[k].shape != weights[k].shape]
        if different:
            raise CheckpointError(f"the necks or heads of {checkpoint} are not those of {config}: {len(different)} "
                                  f"names are in one only or of another shape, as {', '.join(different[:8])}")
    write_atomically(output, lambda file: torch.save({"state_dict": weights, "meta": {}}, file))
    parts = ", ".join(f"{count} {part}" for part, count in Counter(name.split(".")[0] for name in weights).items())
    return f"{output}: {parts} tensors; {heads}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="configuration of the detector or segmenter")
    parser.add_argument("checkpoint", help="the authors' file")
    parser.add_argument("output", help="file to write")
    args = parser.parse_args()
    try:
        print(convert(args.config, args.checkpoint, args.output))
    except (UserError, CheckpointError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
