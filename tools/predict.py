#!/usr/bin/env python
"""Predict for image files.

Classify: tools/predict.py IMAGES --checkpoint FILE --output PNG.
Detect or segment, with mmdet or mmseg: tools/predict.py IMAGES --config CONFIG --checkpoint FILE --output FOLDER.
"""

import sys

if any(argument.split("=")[0] == "--config" for argument in sys.argv[1:]):
    try:
        from visionssm.openmmlab.prediction import main
    except ImportError as missing:
        sys.exit(f"predict: --config needs mmdet or mmseg; docs/openmmlab.md says how to install them: {missing}")
else:
    from visionssm.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
