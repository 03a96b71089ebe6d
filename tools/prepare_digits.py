#!/usr/bin/env python
"""Build data sets of real images from scikit-learn's handwritten digits, without a download."""

import sys

from visionssm.commands.prepare_digits import main

if __name__ == "__main__":
    sys.exit(main())
