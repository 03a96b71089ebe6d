"""GroupMamba-T, Mask R-CNN, 12 epochs.

A recipe of this project, not of the authors, who publish no code for dense prediction; nothing was trained with it.
Settings are those of VMamba.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="groupmamba_tiny", pretrained="weights/groupmamba_tiny.pth", drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 348, 448]),
)
