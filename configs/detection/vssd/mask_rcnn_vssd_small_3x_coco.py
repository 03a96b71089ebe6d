"""VSSD-S, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 50.0, mask AP 44.6. Source: the authors' README (https://github.com/YuHengsss/VSSD).
"""

_base_ = "mask_rcnn_vssd_tiny_3x_coco.py"
model = dict(
    backbone=dict(name="vssd_small", drop_path_rate=0.4),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
