#!/usr/bin/env python
"""Measure models side by side.

The same as `visionssm benchmark`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("benchmark", sys.argv[1:]))
