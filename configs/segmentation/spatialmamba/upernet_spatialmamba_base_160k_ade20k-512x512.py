"""Spatial-Mamba-B, UPerNet, 160,000 iterations.

Published: mIoU 51.8, with several scales 52.6. Source: the authors' README (https://github.com/EdwardChasel/Spatial-Mamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "upernet_spatialmamba_tiny_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="spatialmamba_base", pretrained="weights/spatialmamba_base.pth", drop_path_rate=0.5),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
