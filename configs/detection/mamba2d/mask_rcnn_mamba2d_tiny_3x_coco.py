"""M2D-T, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 50.5, mask AP 44.7. Source: the authors' README (https://github.com/cocoalex00/Mamba2D).
The authors step once for 8 batches of 2 images; here 16 images come from 8 GPUs.
"""

_base_ = "mask_rcnn_mamba2d_nano_3x_coco.py"
model = dict(
    backbone=dict(name="mamba2d_tiny", drop_path_rate=0.175),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
