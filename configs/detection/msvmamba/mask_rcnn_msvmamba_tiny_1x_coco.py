"""MSVMamba-T, Mask R-CNN, 12 epochs.

Published: box AP 46.9, mask AP 42.2. Source: the authors' README (https://github.com/YuHengsss/MSVMamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "mask_rcnn_msvmamba_micro_1x_coco.py"
model = dict(
    backbone=dict(name="msvmamba_tiny", pretrained="weights/msvmamba_tiny.pth"),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
