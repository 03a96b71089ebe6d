"""PlainMamba-L3, UPerNet on four blocks of one stride, 160,000 iterations.

Published: mIoU 49.1. Source: the authors' README
(https://github.com/ChenhongyiYang/PlainMamba).
"""

_base_ = "upernet_plainmamba_l1_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="plainmamba_l3", out_indices=(8, 17, 26, 35), drop_path_rate=0.3),
    decode_head=dict(in_channels=[448] * 4),
    auxiliary_head=dict(in_channels=448),
)
