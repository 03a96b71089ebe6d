#!/usr/bin/env python
"""Draw pictures of what the models do."""

import sys

from visionssm.commands.visualize import main

if __name__ == "__main__":
    sys.exit(main())
