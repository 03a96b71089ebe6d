#!/usr/bin/env python
"""Evaluate a detector or segmenter: tools/openmmlab_test.py CONFIG CHECKPOINT --show-dir pictures."""

import sys

from visionssm.openmmlab.launching import test

if __name__ == "__main__":
    sys.exit(test())
