"""VSSD-T, Mask R-CNN, 12 epochs.

Published: box AP 46.9, mask AP 42.6. Source: the authors' README (https://github.com/YuHengsss/VSSD).
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="vssd_tiny", pretrained=True, drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
