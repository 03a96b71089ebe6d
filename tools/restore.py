#!/usr/bin/env python
"""Restore image files.

The same as `visionssm restore`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("restore", sys.argv[1:]))
