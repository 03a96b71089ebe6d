#!/usr/bin/env python
"""List models, recipes or scan orders by name.

The same as `visionssm list`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("list", sys.argv[1:]))
