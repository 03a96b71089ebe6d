#!/usr/bin/env python
"""Evaluate classifiers: tools/validate.py --data-dir DIR --checkpoint FILE, or --model NAME --pretrained."""

import sys

from visionssm.commands.validate import main

if __name__ == "__main__":
    sys.exit(main())
