"""M2D-S, UPerNet, 160,000 iterations.

Published: mIoU 51.7, with several scales 51.8. Source: the authors' README (https://github.com/cocoalex00/Mamba2D).
The authors step once for 2 batches of 8 images; here 16 images come from 8 GPUs.
"""

_base_ = "upernet_mamba2d_nano_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="mamba2d_small", drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 576]),
    auxiliary_head=dict(in_channels=384),
)
