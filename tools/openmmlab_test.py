#!/usr/bin/env python
"""Evaluate a detector or segmenter.

The same as `visionssm openmmlab-test`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("openmmlab_test", sys.argv[1:]))
