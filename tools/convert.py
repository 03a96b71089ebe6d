#!/usr/bin/env python
"""Convert the authors' checkpoint of a detector or segmenter: tools/convert.py CONFIG INPUT OUTPUT."""

import sys

from visionssm.commands.convert import main

if __name__ == "__main__":
    sys.exit(main())
