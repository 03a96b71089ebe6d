#!/usr/bin/env python
"""Compare runs of training.

The same as `visionssm compare`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("compare", sys.argv[1:]))
