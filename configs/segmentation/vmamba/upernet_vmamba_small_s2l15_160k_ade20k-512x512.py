"""VMamba-S (s2l15), UPerNet, 160,000 iterations.

Published: mIoU 50.6, with several scales 51.2. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "upernet_vmamba_tiny_s1l8_160k_ade20k-512x512.py"
model = dict(backbone=dict(name="vmamba_small_s2l15", drop_path_rate=0.3))
