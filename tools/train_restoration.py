#!/usr/bin/env python
"""Train a restoration model.

The same as `visionssm train-restoration`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("train_restoration", sys.argv[1:]))
