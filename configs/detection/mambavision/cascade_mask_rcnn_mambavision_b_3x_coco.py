"""MambaVision-B, Cascade Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 52.8, mask AP 45.7. Source: the authors' README (https://github.com/NVlabs/MambaVision).
Every map lies in one window and is filled with zeros to its size; the authors' backbone drops the rate of stochastic
depth that their configurations give, and trains with 0.2. The weights are not for commercial use.
"""

_base_ = "cascade_mask_rcnn_mambavision_t_3x_coco.py"
model = dict(backbone=dict(name="mambavision_b"), neck=dict(in_channels=[128, 256, 512, 1024]))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
