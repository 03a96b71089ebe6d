#!/usr/bin/env python
"""Convert the authors' checkpoint of a detector or segmenter.

The same as `visionssm convert`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("convert", sys.argv[1:]))
