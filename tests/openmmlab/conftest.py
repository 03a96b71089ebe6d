"""Puts the operators in mmcv's place before a test module imports `mmdet.models`, which binds what it finds."""

import contextlib

with contextlib.suppress(ImportError):  # the tests say what they need
    import visionssm.openmmlab  # noqa: F401
