#!/usr/bin/env python
"""Train an image classifier: tools/train.py -c configs/classification/....yaml --data-dir DIR --output DIR."""

import sys

from visionssm.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
