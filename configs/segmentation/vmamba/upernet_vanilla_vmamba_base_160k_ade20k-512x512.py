"""Vanilla VMamba-B, UPerNet, 160,000 iterations.

Published: mIoU 50.0, with several scales 51.3. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "upernet_vmamba_tiny_s1l8_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="vanilla_vmamba_base", drop_path_rate=0.1),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
