#!/usr/bin/env python
"""Export a model with torch.export or to ONNX and check the written file.

The same as `visionssm export`.
"""

import sys

from visionssm.commands._dispatch import run

if __name__ == "__main__":
    sys.exit(run("export", sys.argv[1:]))
