"""GrootV-S, UPerNet, 160,000 iterations.

Published: mIoU 50.7, with several scales 51.7. Source: the authors' README
(https://github.com/EasonXiao-888/GrootVL).
Settings that the paper does not state are those of VMamba; the authors publish no code for dense prediction.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(
        name="grootv_small",
        pretrained="weights/grootv_small.pth",
        drop_path_rate=0.3,
        out_norm=None,  # each stage ends with a norm
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
