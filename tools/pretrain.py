#!/usr/bin/env python
"""Train a backbone without labels: hide cells of images, and find them again (masked image modelling).

The same as `visionssm pretrain`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("pretrain", sys.argv[1:]))
