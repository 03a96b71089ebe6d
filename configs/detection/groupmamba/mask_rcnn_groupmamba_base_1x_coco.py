"""GroupMamba-B, Mask R-CNN, 12 epochs.

A recipe of this project, not of the authors, who publish no code for dense prediction; nothing was trained with it.
Settings are those of VMamba.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "mask_rcnn_groupmamba_tiny_1x_coco.py"
model = dict(
    backbone=dict(name="groupmamba_base", pretrained="weights/groupmamba_base.pth", drop_path_rate=0.4),
    neck=dict(in_channels=[96, 192, 424, 512]),
)
