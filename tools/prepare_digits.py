#!/usr/bin/env python
"""Build data sets of real images from scikit-learn's handwritten digits, without a download.

The same as `visionssm prepare-digits`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("prepare_digits", sys.argv[1:]))
