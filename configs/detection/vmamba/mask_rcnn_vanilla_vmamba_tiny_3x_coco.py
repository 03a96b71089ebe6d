"""Vanilla VMamba-T, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 48.5, mask AP 43.2. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_3x_coco.py"
model = dict(backbone=dict(name="vanilla_vmamba_tiny"))
