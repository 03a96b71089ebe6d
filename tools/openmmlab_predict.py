#!/usr/bin/env python
"""Detect or segment what image files show.

The same as `visionssm openmmlab-predict`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("openmmlab_predict", sys.argv[1:]))
