"""VMamba-T (s2l5), Mask R-CNN, 12 epochs.

Published: box AP 47.4, mask AP 42.7. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_1x_coco.py"
model = dict(backbone=dict(name="vmamba_tiny_s2l5"))
