"""GrootV-T, Mask R-CNN, 12 epochs.

Published: box AP 47.0, mask AP 42.7. Source: the authors' README (https://github.com/EasonXiao-888/GrootVL).
Settings that the paper does not state are those of VMamba; the authors publish no code for dense prediction.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        name="grootv_tiny",
        pretrained="weights/grootv_tiny.pth",
        drop_path_rate=0.1,
        out_norm=None,  # each stage ends with a norm
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
