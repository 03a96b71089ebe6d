"""Spatial-Mamba-T, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 49.3, mask AP 43.6. Source: the authors' README (https://github.com/EdwardChasel/Spatial-Mamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco_multi_scale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="spatialmamba_tiny", pretrained="weights/spatialmamba_tiny.pth", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
