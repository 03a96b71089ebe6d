"""MambaVision-S, Cascade Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 52.3, mask AP 45.2. Source: the authors' README (https://github.com/NVlabs/MambaVision).
Every map lies in one window and is filled with zeros to its size; the authors' backbone drops the rate of stochastic
depth that their configurations give, and trains with 0.2. The weights are not for commercial use.
"""

_base_ = "cascade_mask_rcnn_mambavision_t_3x_coco.py"
model = dict(backbone=dict(name="mambavision_s"), neck=dict(in_channels=[96, 192, 384, 768]))
