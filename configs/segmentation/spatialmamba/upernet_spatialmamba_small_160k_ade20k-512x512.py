"""Spatial-Mamba-S, UPerNet, 160,000 iterations.

Published: mIoU 50.6, with several scales 51.4. Source: the authors' README (https://github.com/EdwardChasel/Spatial-Mamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "upernet_spatialmamba_tiny_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="spatialmamba_small", pretrained="weights/spatialmamba_small.pth", drop_path_rate=0.3),
)
