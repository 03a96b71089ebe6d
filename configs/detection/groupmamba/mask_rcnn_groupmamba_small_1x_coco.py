"""GroupMamba-S, Mask R-CNN, 12 epochs.

A recipe of this project, not of the authors, who publish no code for dense prediction; nothing was trained with it.
Settings are those of VMamba.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "mask_rcnn_groupmamba_tiny_1x_coco.py"
model = dict(
    backbone=dict(name="groupmamba_small", pretrained="weights/groupmamba_small.pth", drop_path_rate=0.3),
    neck=dict(in_channels=[64, 128, 348, 512]),
)
