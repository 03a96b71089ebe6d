"""VMamba-T (s2l5), UPerNet, 160,000 iterations.

Published: mIoU 48.3, with several scales 48.6. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(name="vmamba_tiny_s2l5", pretrained=True, drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
