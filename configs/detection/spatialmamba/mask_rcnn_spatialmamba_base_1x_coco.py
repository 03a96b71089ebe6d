"""Spatial-Mamba-B, Mask R-CNN, 12 epochs.

Published: box AP 50.4, mask AP 45.1. Source: the authors' README (https://github.com/EdwardChasel/Spatial-Mamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "mask_rcnn_spatialmamba_tiny_1x_coco.py"
model = dict(
    backbone=dict(name="spatialmamba_base", pretrained="weights/spatialmamba_base.pth", drop_path_rate=0.5),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
