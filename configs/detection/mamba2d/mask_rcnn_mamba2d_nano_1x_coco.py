"""M2D-N, Mask R-CNN, 12 epochs.

Published: box AP 42.8, mask AP 39.6. Source: the authors' README (https://github.com/cocoalex00/Mamba2D).
The authors step once for 8 batches of 2 images; here 16 images come from 8 GPUs.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        name="mamba2d_nano", pretrained=True, drop_path_rate=0.0, out_norm=None
    ),  # each stage ends with a norm
    neck=dict(in_channels=[32, 64, 160, 256], norm_cfg=dict(type="GN", num_groups=32, requires_grad=True)),
)
optim_wrapper = dict(
    clip_grad=dict(max_norm=1.0, norm_type=2),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys=dict(bias=dict(decay_mult=0.0), A_log_top=dict(decay_mult=0.0), A_log_left=dict(decay_mult=0.0)),
    ),
)
