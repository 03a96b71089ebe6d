"""VMamba-S (s2l15), Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 49.9, mask AP 44.2. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_3x_coco.py"
model = dict(backbone=dict(name="vmamba_small_s2l15", drop_path_rate=0.3))
