"""VSSD-M, Mask R-CNN, 12 epochs.

Published: box AP 45.4, mask AP 41.3. Source: the authors' README (https://github.com/YuHengsss/VSSD).
"""

_base_ = "mask_rcnn_vssd_tiny_1x_coco.py"
model = dict(
    backbone=dict(name="vssd_micro", drop_path_rate=0.1),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
