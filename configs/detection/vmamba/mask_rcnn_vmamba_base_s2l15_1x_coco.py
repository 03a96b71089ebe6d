"""VMamba-B (s2l15), Mask R-CNN, 12 epochs.

Published: box AP 49.2, mask AP 44.1. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_1x_coco.py"
model = dict(backbone=dict(name="vmamba_base_s2l15", drop_path_rate=0.6), neck=dict(in_channels=[128, 256, 512, 1024]))
