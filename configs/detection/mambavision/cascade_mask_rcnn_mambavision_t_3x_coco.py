"""MambaVision-T, Cascade Mask R-CNN, 36 epochs, multi-scale.

Published: box AP 51.1, mask AP 44.3. Source: the authors' README (https://github.com/NVlabs/MambaVision).
Every map lies in one window and is filled with zeros to its size; the authors' backbone drops the rate of stochastic
depth that their configurations give, and trains with 0.2. The weights are not for commercial use.
"""

_base_ = [
    "../../_base_/models/cascade_mask_rcnn.py",
    "../../_base_/datasets/coco_multi_scale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        name="mambavision_t",
        pretrained=True,
        drop_path_rate=0.2,
        model_args=dict(window_size=(8, 8, 112, 56)),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
optim_wrapper = dict(type="AmpOptimWrapper")
