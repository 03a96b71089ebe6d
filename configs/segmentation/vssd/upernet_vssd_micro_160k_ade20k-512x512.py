"""VSSD-M, UPerNet, 160,000 iterations.

Published: mIoU 45.6, with several scales 46.0. Source: the authors' README (https://github.com/YuHengsss/VSSD).
The authors publish the weights of this one without a configuration.
"""

_base_ = "upernet_vssd_tiny_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="vssd_micro", drop_path_rate=0.1),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
