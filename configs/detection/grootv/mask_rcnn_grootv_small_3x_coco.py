"""GrootV-S, Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 50.1, mask AP 44.6. Source: the authors' README (https://github.com/EasonXiao-888/GrootVL).
Settings that the paper does not state are those of VMamba; the authors publish no code for dense prediction.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco_multi_scale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        name="grootv_small",
        pretrained="weights/grootv_small.pth",
        drop_path_rate=0.3,
        out_norm=None,  # each stage ends with a norm
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
