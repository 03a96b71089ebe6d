"""Evaluate a detector or segmenter: tools/openmmlab_test.py CONFIG CHECKPOINT --show-dir pictures."""

from ..openmmlab.launching import test as main

__all__ = ["main"]
