"""MSVMamba-T, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 48.3, mask AP 43.2. Source: the authors' README (https://github.com/YuHengsss/MSVMamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "mask_rcnn_msvmamba_micro_3x_coco.py"
model = dict(
    backbone=dict(name="msvmamba_tiny", pretrained="weights/msvmamba_tiny.pth"),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
