"""HRVMamba-B, UPerNet, 160,000 iterations.

Published: mIoU 51.4, with several scales 52.2. Source: the authors' README (https://github.com/zhanghao5201/HRVMamba).
The maps are those of the classification neck, which fuses the four resolutions.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(
        name="hrvmamba_base",
        pretrained="weights/hrvmamba_base.pth",
        drop_path_rate=0.15,
        model_args=dict(features="neck"),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 2048]),
    auxiliary_head=dict(in_channels=512),
)
