#!/usr/bin/env python
"""Evaluate classifiers.

The same as `visionssm validate`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("validate", sys.argv[1:]))
