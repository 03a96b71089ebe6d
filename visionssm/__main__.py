"""`python -m visionssm COMMAND`, the same as the console command `visionssm`."""

import sys

from .commands._dispatch import main

if __name__ == "__main__":
    sys.exit(main())
