"""Vanilla VMamba-B, Mask R-CNN, 12 epochs.

Published: box AP 48.6, mask AP 43.3. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="vanilla_vmamba_base", pretrained=True, drop_path_rate=0.6),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
