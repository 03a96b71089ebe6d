"""VMamba-T (s1l8), Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 48.8, mask AP 43.7. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco_multi_scale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="vmamba_tiny_s1l8", pretrained=True, drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
