"""EfficientViM-M4, RetinaNet, 12 epochs.

Published: box AP 38.8. Source: the authors' README (https://github.com/mlvlab/EfficientViM).
The backbone's maps have strides 16, 32 and 64 and are normalised before the pyramid, where a finer level is made of the
first. Norms are decayed like all weights.
"""

_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco_boxes.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="efficientvim_m4.e450_in1k", pretrained=True),
    neck=dict(type="FinerFPN", in_channels=[224, 320, 512], out_channels=256, num_finer=1, num_coarser=1),
)
optim_wrapper = dict(optimizer=dict(lr=2.0e-4), paramwise_cfg=dict(_delete_=True))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
