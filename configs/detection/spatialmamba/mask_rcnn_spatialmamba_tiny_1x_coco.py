"""Spatial-Mamba-T, Mask R-CNN, 12 epochs.

Published: box AP 47.6, mask AP 42.9. Source: the authors' README (https://github.com/EdwardChasel/Spatial-Mamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="spatialmamba_tiny", pretrained="weights/spatialmamba_tiny.pth", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
