#!/usr/bin/env python
"""Say what a model or a run is.

The same as `visionssm info`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("info", sys.argv[1:]))
