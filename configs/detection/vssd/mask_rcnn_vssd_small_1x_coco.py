"""VSSD-S, Mask R-CNN, 12 epochs.

Published: box AP 48.4, mask AP 43.5. Source: the authors' README (https://github.com/YuHengsss/VSSD).
"""

_base_ = "mask_rcnn_vssd_tiny_1x_coco.py"
model = dict(
    backbone=dict(name="vssd_small", drop_path_rate=0.4),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
