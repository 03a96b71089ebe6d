#!/usr/bin/env python
"""Draw pictures of what the models do.

The same as `visionssm visualize`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("visualize", sys.argv[1:]))
