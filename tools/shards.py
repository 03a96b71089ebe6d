#!/usr/bin/env python
"""Write an image folder as WebDataset shards, count existing ones, or verify them.

The same as `visionssm shards`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("shards", sys.argv[1:]))
