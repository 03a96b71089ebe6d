#!/usr/bin/env python
"""Compute the GPU memory of a training step from shapes, by model, image size and batch size."""

import sys

from visionssm.commands.memory import main

if __name__ == "__main__":
    sys.exit(main())
