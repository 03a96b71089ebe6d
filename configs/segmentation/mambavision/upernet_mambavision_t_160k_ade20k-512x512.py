"""MambaVision-T, UPerNet, 160,000 iterations.

Published: mIoU 46.0. Source: the authors' README (https://github.com/NVlabs/MambaVision).
Every map lies in one window and is filled with zeros to its size; the authors' backbone drops the rate of stochastic
depth that their configurations give, and trains with 0.2. The weights are not for commercial use.
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(
        name="mambavision_t",
        pretrained=True,
        drop_path_rate=0.2,
        model_args=dict(window_size=(8, 8, 64, 32)),
    ),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)
optim_wrapper = dict(type="AmpOptimWrapper", optimizer=dict(lr=5e-5))
