"""EfficientVMamba-T, Mask R-CNN, 12 epochs.

No result is published. Schedule of the authors' configuration (https://github.com/TerryPei/EfficientVMamba), whose neck
has channels that fit the base model alone.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="efficientvmamba_tiny", pretrained="weights/efficientvmamba_tiny.ckpt", drop_path_rate=0.1),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
