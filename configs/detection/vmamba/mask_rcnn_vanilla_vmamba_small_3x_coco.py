"""Vanilla VMamba-S, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 49.7, mask AP 44.0. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_3x_coco.py"
model = dict(backbone=dict(name="vanilla_vmamba_small", drop_path_rate=0.3))
