#!/usr/bin/env python
"""Classify image files: tools/predict.py IMAGES --checkpoint FILE --output PNG."""

import sys

from visionssm.engine.prediction import main

if __name__ == "__main__":
    sys.exit(main())
