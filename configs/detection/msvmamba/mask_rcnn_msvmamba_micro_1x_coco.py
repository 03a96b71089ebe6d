"""MSVMamba-M, Mask R-CNN, 12 epochs.

Published: box AP 43.8, mask AP 39.9. Source: the authors' README (https://github.com/YuHengsss/MSVMamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="msvmamba_micro", pretrained="weights/msvmamba_micro.pth", drop_path_rate=0.1),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
