"""MobileMamba-B4, Semantic FPN, 160,000 iterations.

Published: mIoU 42.5. Source: the authors' README (https://github.com/lewandofskee/MobileMamba).
The maps have strides 16, 32 and 64. 32 images per step; the head learns ten times as fast.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/semantic_fpn.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(
        name="mobilemamba_b4",
        pretrained="weights/mobilemamba_b4.pth",
        out_norm=None,
        drop_path_rate=0.03,
    ),
    neck=dict(in_channels=[200, 376, 448], num_outs=3),
    decode_head=dict(in_channels=[256, 256, 256], in_index=[0, 1, 2], feature_strides=[16, 32, 64]),
)
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(
    optimizer=dict(lr=1.2e-4, weight_decay=0.05), paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0)))
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="CosineAnnealingLR", T_max=80000, by_epoch=False, begin=80000, end=160000),
]
auto_scale_lr = dict(base_batch_size=32)
