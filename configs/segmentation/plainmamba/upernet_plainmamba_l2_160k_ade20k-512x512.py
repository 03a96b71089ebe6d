"""PlainMamba-L2, UPerNet on four blocks of one stride, 160,000 iterations.

Published: mIoU 46.8. Source: the authors' README
(https://github.com/ChenhongyiYang/PlainMamba).
"""

_base_ = "upernet_plainmamba_l1_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="plainmamba_l2", drop_path_rate=0.2),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
