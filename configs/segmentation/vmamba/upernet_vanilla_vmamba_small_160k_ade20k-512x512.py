"""Vanilla VMamba-S, UPerNet, 160,000 iterations.

Published: mIoU 49.5, with several scales 50.5. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "upernet_vmamba_tiny_s1l8_160k_ade20k-512x512.py"
model = dict(backbone=dict(name="vanilla_vmamba_small", drop_path_rate=0.1))
