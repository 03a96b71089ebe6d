#!/usr/bin/env python
"""Make an ordinary checkpoint, which every command reads, of one that a sharded training wrote.

The same as `visionssm consolidate`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("consolidate", sys.argv[1:]))
