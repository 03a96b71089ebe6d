#!/usr/bin/env python
"""Build data sets of real images from scikit-learn's handwritten digits, without a download."""

from __future__ import annotations

import argparse
import sys

from visionssm.engine.digits import write_classification
from visionssm.engine.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, help="folder that receives train/ and validation/")
    parser.add_argument("--size", type=int, default=32, help="height and width of an image (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="fixes the split (default: 0)")
    args = parser.parse_args()
    try:
        manifest = write_classification(args.output, size=args.size, seed=args.seed)
    except UserError as error:
        print(f"prepare_digits: {error}", file=sys.stderr)
        return 2
    counts = ", ".join(f"{count} {split}" for split, count in manifest["images"].items())
    print(f"{args.output}: {counts} images of {args.size} x {args.size} pixels in 10 classes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
