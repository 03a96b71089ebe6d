#!/usr/bin/env python
"""Predict for image files.

The same as `visionssm predict`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("predict", sys.argv[1:]))
