"""Vanilla VMamba-B, Mask R-CNN, 12 epochs.

Published: box AP 48.6, mask AP 43.3. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_1x_coco.py"
model = dict(
    backbone=dict(name="vanilla_vmamba_base", drop_path_rate=0.6), neck=dict(in_channels=[128, 256, 512, 1024])
)
