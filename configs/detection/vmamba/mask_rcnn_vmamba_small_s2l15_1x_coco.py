"""VMamba-S (s2l15), Mask R-CNN, 12 epochs.

Published: box AP 48.7, mask AP 43.7. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="vmamba_small_s2l15", pretrained=True, drop_path_rate=0.3),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
