"""MobileMamba-B1, SSDLite, images of 320 x 320, 24 epochs of five passes each.

Published: box AP 24.0. Source: the authors' README (https://github.com/lewandofskee/MobileMamba). The head reads
strides 16 and 32 and four coarser maps. 192 images per step. Anchors and augmentation are mmdet's for SSDLite; the rate
is the authors', the optimizer that of their other detectors. With the last stage, which it does not read, the 18.0 M
parameters that they state.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/ssdlite.py",
    "../../_base_/datasets/coco_ssd.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
_channels = (200, 376, 512, 256, 256, 128)
model = dict(
    backbone=dict(
        name="mobilemamba_b1",
        pretrained="weights/mobilemamba_b1.pth",
        out_norm=None,
        norm_eval=True,
        drop_path_rate=0.03,
    ),
    neck=dict(in_channels=_channels[:2], out_channels=_channels),
    bbox_head=dict(in_channels=_channels),
)
train_cfg = dict(max_epochs=24)
optim_wrapper = dict(optimizer=dict(lr=2.4e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", T_max=24, by_epoch=True, begin=0, end=24, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=192)
