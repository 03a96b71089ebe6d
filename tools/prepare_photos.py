#!/usr/bin/env python
"""Build a small set of sharp photographs.

The same as `visionssm prepare-photos`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("prepare_photos", sys.argv[1:]))
