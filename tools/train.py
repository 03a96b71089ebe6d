#!/usr/bin/env python
"""Train an image classifier.

The same as `visionssm train`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:]))
