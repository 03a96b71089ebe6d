"""LocalVMamba-S, Mask R-CNN, 36 epochs, multi-scale; the authors train with mixed precision (--amp).

Published: box AP 49.9, mask AP 44.1. Source: the paper (arXiv:2403.09338, table 3);
the authors' repository leaves its result columns empty and publishes no weights of detectors and segmenters.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco_multi_scale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="localvmamba_small", pretrained=True, drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
