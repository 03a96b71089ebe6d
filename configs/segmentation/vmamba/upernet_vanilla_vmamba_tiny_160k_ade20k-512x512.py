"""Vanilla VMamba-T, UPerNet, 160,000 iterations.

Published: mIoU 47.3, with several scales 48.3. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(name="vanilla_vmamba_tiny", pretrained=True, drop_path_rate=0.1),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
