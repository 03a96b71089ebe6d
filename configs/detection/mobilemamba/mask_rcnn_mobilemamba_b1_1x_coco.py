"""MobileMamba-B1, Mask R-CNN, 12 epochs.

Published: box AP 40.6, mask AP 37.4. Source: the authors' README (https://github.com/lewandofskee/MobileMamba), whose
pyramid and schedule these are: the backbone's maps have strides 16, 32 and 64, and two finer levels are made of the
first. 16 images per step.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        name="mobilemamba_b1",
        pretrained="weights/mobilemamba_b1.pth",
        out_norm=None,
        norm_eval=True,
        drop_path_rate=0.03,
    ),
    neck=dict(_delete_=True, type="FinerFPN", in_channels=[200, 376, 448], out_channels=256, num_finer=2),
)
optim_wrapper = dict(optimizer=dict(lr=2.0e-4), clip_grad=dict(max_norm=0.1))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", T_max=6, by_epoch=True, begin=6, end=12, convert_to_iter_based=True),
]
