"""VMamba-S (s2l15), Mask R-CNN, 12 epochs.

Published: box AP 48.7, mask AP 43.7. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "mask_rcnn_vmamba_tiny_s1l8_1x_coco.py"
model = dict(backbone=dict(name="vmamba_small_s2l15", drop_path_rate=0.3))
