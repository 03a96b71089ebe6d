"""Vanilla VMamba-T, Mask R-CNN, 12 epochs.

Published: box AP 46.5, mask AP 42.1. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_1x_coco.py"
model = dict(backbone=dict(name="vanilla_vmamba_tiny"))
