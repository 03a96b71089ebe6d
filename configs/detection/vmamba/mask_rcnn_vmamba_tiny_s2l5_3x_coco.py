"""VMamba-T (s2l5), Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 48.9, mask AP 43.7. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_3x_coco.py"
model = dict(backbone=dict(name="vmamba_tiny_s2l5"))
