"""Vanilla VMamba-S, Mask R-CNN, 12 epochs.

Published: box AP 48.2, mask AP 43.0. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_1x_coco.py"
model = dict(backbone=dict(name="vanilla_vmamba_small", drop_path_rate=0.3))
