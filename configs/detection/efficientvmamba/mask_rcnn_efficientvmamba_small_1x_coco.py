"""EfficientVMamba-S, Mask R-CNN, 12 epochs.

No result is published. Schedule of the authors' configuration (https://github.com/TerryPei/EfficientVMamba), whose neck
has channels that fit the base model alone.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "mask_rcnn_efficientvmamba_tiny_1x_coco.py"
model = dict(
    backbone=dict(name="efficientvmamba_small", pretrained="weights/efficientvmamba_small.ckpt", drop_path_rate=0.1),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
