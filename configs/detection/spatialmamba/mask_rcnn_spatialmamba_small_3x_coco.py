"""Spatial-Mamba-S, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 50.5, mask AP 44.6. Source: the authors' README (https://github.com/EdwardChasel/Spatial-Mamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "mask_rcnn_spatialmamba_tiny_3x_coco.py"
model = dict(
    backbone=dict(name="spatialmamba_small", pretrained="weights/spatialmamba_small.pth", drop_path_rate=0.3),
)
