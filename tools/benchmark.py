#!/usr/bin/env python
"""Measure models side by side: tools/benchmark.py --model vmamba_tiny_s1l8 convnext_tiny --bench both --plot PNG."""

import sys

from visionssm.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
