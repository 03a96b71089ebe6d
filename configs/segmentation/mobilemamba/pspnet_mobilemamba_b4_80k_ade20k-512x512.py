"""MobileMamba-B4, PSPNet, 80,000 iterations.

Published: mIoU 36.9. Source: the authors' README (https://github.com/lewandofskee/MobileMamba). The head reads the
last map, of stride 64, in 256 channels: 20.6 M parameters, the authors state 20.5 M. 32 images per step.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/pspnet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(name="mobilemamba_b4", pretrained="weights/mobilemamba_b4.pth", out_norm=None, drop_path_rate=0.03),
    decode_head=dict(in_channels=448),
)
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_iters=80000, val_interval=8000)
optim_wrapper = dict(optimizer=dict(lr=1.2e-4, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="CosineAnnealingLR", T_max=40000, by_epoch=False, begin=40000, end=80000),
]
auto_scale_lr = dict(base_batch_size=32)
