"""EfficientVMamba-B, Mask R-CNN, 36 epochs, multi-scale.

No result is published. Schedule of the authors' configuration (https://github.com/TerryPei/EfficientVMamba), whose neck
has channels that fit the base model alone.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco_multi_scale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="efficientvmamba_base", pretrained="weights/efficientvmamba_base.ckpt", drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
