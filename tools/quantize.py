#!/usr/bin/env python
"""Round a trained classifier's weights and activations to few bits, and say what that costs.

The same as `visionssm quantize`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("quantize", sys.argv[1:]))
