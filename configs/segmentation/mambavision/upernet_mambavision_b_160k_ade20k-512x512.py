"""MambaVision-B, UPerNet, 160,000 iterations.

Published: mIoU 49.1. Source: the authors' README (https://github.com/NVlabs/MambaVision).
Every map lies in one window and is filled with zeros to its size; the authors' backbone drops the rate of stochastic
depth that their configurations give, and trains with 0.2. The weights are not for commercial use.
"""

_base_ = "upernet_mambavision_t_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="mambavision_b"),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
