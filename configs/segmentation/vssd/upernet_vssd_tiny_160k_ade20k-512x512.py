"""VSSD-T, UPerNet, 160,000 iterations.

Published: mIoU 47.9, with several scales 48.7. Source: the authors' README (https://github.com/YuHengsss/VSSD).
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(name="vssd_tiny", pretrained=True, drop_path_rate=0.2),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
