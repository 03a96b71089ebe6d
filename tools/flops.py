#!/usr/bin/env python
"""Print parameters and multiply-adds of models at their published input size, beside the published figures.

The same as `visionssm flops`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("flops", sys.argv[1:]))
