"""Print parameters and multiply-adds of models at their published input size, beside the published figures.

python tools/flops.py [PATTERN ...]
"""

import argparse
import json
import sys

import timm
from timm.models import get_pretrained_cfg

from .. import list_models
from ..analysis.flops import count
from ..files import shipped


def published() -> dict[str, dict]:
    """Published figures of every variant, from the model cards."""
    return {
        name: figures
        for path in sorted(shipped("model_cards").glob("*.json"))
        for name, figures in json.loads(path.read_text())["variants"].items()
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", default=["*"], help="names of models (default: all)")
    args = parser.parse_args(argv)
    names = list_models(args.patterns)
    if not names:
        print(f"no model matches {' '.join(args.patterns)}; known: {', '.join(list_models())}", file=sys.stderr)
        return 2
    figures = published()
    print(f"{'model':32} {'input':>9} {'parameters':>12} {'published':>9} {'GMACs':>8} {'published':>9} {'gap':>7}")
    for name in names:
        cfg = get_pretrained_cfg(name, allow_unregistered=False)
        assert cfg is not None
        cost = count(timm.create_model(name, device="meta"), cfg.input_size)
        height, width = cfg.input_size[1:]
        known = figures.get(name, {})
        gmacs = known.get("gmacs")
        gap = f"{cost.multiply_adds / 1e9 / gmacs - 1:+7.1%}" if gmacs else f"{'':7}"
        print(
            f"{name:32} {f'{height}x{width}':>9} {cost.parameters:12,} {known.get('parameters', ''):>9} "
            f"{cost.multiply_adds / 1e9:8.3f} {gmacs or '':>9} {gap}",
            flush=True,
        )
    return 0
