"""Vanilla VMamba-S, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 49.7, mask AP 44.0. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco_multi_scale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="vanilla_vmamba_small", pretrained=True, drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
