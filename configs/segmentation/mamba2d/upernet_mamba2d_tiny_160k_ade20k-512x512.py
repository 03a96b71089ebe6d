"""M2D-T, UPerNet, 160,000 iterations.

Published: mIoU 48.9, with several scales 49.3. Source: the authors' README (https://github.com/cocoalex00/Mamba2D).
The authors step once for 2 batches of 8 images; here 16 images come from 8 GPUs.
"""

_base_ = "upernet_mamba2d_nano_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="mamba2d_tiny", drop_path_rate=0.175),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320),
)
