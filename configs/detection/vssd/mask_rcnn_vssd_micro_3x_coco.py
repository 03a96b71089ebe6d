"""VSSD-M, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 47.7, mask AP 42.8. Source: the authors' README (https://github.com/YuHengsss/VSSD).
"""

_base_ = "mask_rcnn_vssd_tiny_3x_coco.py"
model = dict(
    backbone=dict(name="vssd_micro", drop_path_rate=0.1),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
