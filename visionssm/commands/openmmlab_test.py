"""Evaluate a detector or segmenter of mmdet or mmseg.

python tools/openmmlab_test.py mine.py work/mine/epoch_12.pth
python tools/openmmlab_test.py mine.py work/mine/epoch_12.pth --show-dir pictures
"""

from __future__ import annotations

from ._boundary import bounded


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    from ..openmmlab.launching import test

    return test(argv)
