"""Vanilla VMamba-T, UPerNet, 160,000 iterations.

Published: mIoU 47.3, with several scales 48.3. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "upernet_vmamba_tiny_s1l8_160k_ade20k-512x512.py"
model = dict(backbone=dict(name="vanilla_vmamba_tiny", drop_path_rate=0.1))
