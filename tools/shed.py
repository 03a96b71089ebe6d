#!/usr/bin/env python
"""Remove the parts of a trained classifier that matter least, one at a time, and write the smaller one.

The same as `visionssm shed`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("shed", sys.argv[1:]))
