"""LocalVMamba-S, Mask R-CNN, 12 epochs; the authors train with mixed precision (--amp).

Published: box AP 48.4, mask AP 43.2. Source: the paper (arXiv:2403.09338, table 3);
the authors' repository leaves its result columns empty and publishes no weights of detectors and segmenters.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="localvmamba_small", pretrained=True, drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
