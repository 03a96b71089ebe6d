"""Detect or segment what image files show, with a model of mmdet or mmseg: a picture for each, a line for each.

python tools/openmmlab_predict.py IMAGES --config mine.py --checkpoint work/mine/epoch_12.pth --output pictures
python tools/openmmlab_predict.py one.jpg --config mine.py --checkpoint work/mine/epoch_12.pth --output pictures
"""

from __future__ import annotations

from ._boundary import bounded


@bounded
def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    from ..openmmlab.prediction import main as predict

    return predict(argv)
