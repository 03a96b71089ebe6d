"""VMamba-T (s2l5), UPerNet, 160,000 iterations.

Published: mIoU 48.3, with several scales 48.6. Source: the authors' README (https://github.com/MzeroMiko/VMamba).
"""

_base_ = "upernet_vmamba_tiny_s1l8_160k_ade20k-512x512.py"
model = dict(backbone=dict(name="vmamba_tiny_s2l5"))
