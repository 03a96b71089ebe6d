"""LocalVMamba-T, Mask R-CNN, 36 epochs, multi-scale; the authors train with mixed precision (--amp).

Published: box AP 48.7, mask AP 43.4. Source: the paper (arXiv:2403.09338, table 3);
the authors' repository leaves its result columns empty and publishes no weights of detectors and segmenters.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco_multi_scale.py",
    "../../_base_/schedules/coco_3x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="localvmamba_tiny", pretrained="weights/local_vssm_tiny.ckpt", drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
