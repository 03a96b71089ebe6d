"""M2D-S, Mask R-CNN, 12 epochs.

Published: box AP 50.4, mask AP 45.1. Source: the authors' README (https://github.com/cocoalex00/Mamba2D).
The authors step once for 8 batches of 2 images; here 16 images come from 8 GPUs.
"""

_base_ = "mask_rcnn_mamba2d_nano_1x_coco.py"
model = dict(
    backbone=dict(name="mamba2d_small", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 576]),
)
