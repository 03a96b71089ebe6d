#!/usr/bin/env python
"""Export a model with torch.export or to ONNX and check the written file."""

import sys

from visionssm.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
