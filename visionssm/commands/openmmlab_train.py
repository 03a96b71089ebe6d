"""Train a detector or segmenter with mmdet or mmseg.

python tools/openmmlab_train.py configs/detection/digits/mask_rcnn_test_vmamba_digits.py --work-dir work/detector
python tools/openmmlab_train.py mine.py --work-dir work/mine --auto-scale-lr
"""

from __future__ import annotations

from ._boundary import bounded


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    from ..openmmlab.launching import train

    return train(argv)
