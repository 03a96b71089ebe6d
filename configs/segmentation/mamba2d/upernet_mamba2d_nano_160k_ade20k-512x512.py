"""M2D-N, UPerNet, 160,000 iterations.

Published: mIoU 43.1, with several scales 43.1. Source: the authors' README (https://github.com/cocoalex00/Mamba2D).
The authors step once for 2 batches of 8 images; here 16 images come from 8 GPUs.
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(
        name="mamba2d_nano", pretrained=True, drop_path_rate=0.0, out_norm=None
    ),  # each stage ends with a norm
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    clip_grad=dict(max_norm=1.0, norm_type=2),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys=dict(bias=dict(decay_mult=0.0), A_log_top=dict(decay_mult=0.0), A_log_left=dict(decay_mult=0.0)),
    ),
)
