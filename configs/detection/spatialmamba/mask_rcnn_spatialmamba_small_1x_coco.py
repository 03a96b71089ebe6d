"""Spatial-Mamba-S, Mask R-CNN, 12 epochs.

Published: box AP 49.2, mask AP 44.0. Source: the authors' README (https://github.com/EdwardChasel/Spatial-Mamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "mask_rcnn_spatialmamba_tiny_1x_coco.py"
model = dict(
    backbone=dict(name="spatialmamba_small", pretrained="weights/spatialmamba_small.pth", drop_path_rate=0.3),
)
