#!/usr/bin/env python
"""Train a detector or segmenter: tools/openmmlab_train.py CONFIG --work-dir DIR."""

import sys

from visionssm.openmmlab.launching import train

if __name__ == "__main__":
    sys.exit(train())
