"""VMamba-B (s2l15), UPerNet, 160,000 iterations.

Published: mIoU 51.0, with several scales 51.6. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "upernet_vmamba_tiny_s1l8_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="vmamba_base_s2l15", drop_path_rate=0.6),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
