"""Train a detector or segmenter with mmdet or mmseg: tools/openmmlab_train.py CONFIG --work-dir DIR."""

from ..openmmlab.launching import train as main

__all__ = ["main"]
