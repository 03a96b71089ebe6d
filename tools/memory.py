#!/usr/bin/env python
"""Compute the GPU memory of a training step from shapes, by model, image size and batch size.

The same as `visionssm memory`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("memory", sys.argv[1:]))
