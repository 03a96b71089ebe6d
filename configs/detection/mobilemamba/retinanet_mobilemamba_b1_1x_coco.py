"""MobileMamba-B1, RetinaNet, 12 epochs.

Published: box AP 39.6. Source: the authors' README (https://github.com/lewandofskee/MobileMamba), whose pyramid and
schedule these are: the backbone's maps have strides 16, 32 and 64, a finer level is made of the first, a coarser one of
the last. 16 images per step.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco_boxes.py",
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
    neck=dict(type="FinerFPN", in_channels=[200, 376, 448], out_channels=256, num_finer=1, num_coarser=1),
)
optim_wrapper = dict(optimizer=dict(lr=2.0e-4), clip_grad=dict(max_norm=0.1))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", T_max=6, by_epoch=True, begin=6, end=12, convert_to_iter_based=True),
]
