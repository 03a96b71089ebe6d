"""GrootV-T, UPerNet, 160,000 iterations.

Published: mIoU 48.5, with several scales 49.4. Source: the authors' README
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
        name="grootv_tiny",
        pretrained="weights/grootv_tiny.pth",
        drop_path_rate=0.1,
        out_norm=None,  # each stage ends with a norm
    ),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)
