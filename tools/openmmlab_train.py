#!/usr/bin/env python
"""Train a detector or segmenter.

The same as `visionssm openmmlab-train`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("openmmlab_train", sys.argv[1:]))
