#!/usr/bin/env python
"""Print parameters and multiply-adds of models at their published input size, beside the published figures."""

import sys

from visionssm.commands.flops import main

if __name__ == "__main__":
    sys.exit(main())
