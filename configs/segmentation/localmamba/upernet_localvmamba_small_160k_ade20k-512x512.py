"""LocalVMamba-S, UPerNet, 160,000 iterations.

Published: mIoU 50.0, with several scales 51.0. Source: the paper (arXiv:2403.09338, table 4);
the authors' repository leaves its result columns empty and publishes no weights of detectors and segmenters.
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(name="localvmamba_small", pretrained=True, drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
