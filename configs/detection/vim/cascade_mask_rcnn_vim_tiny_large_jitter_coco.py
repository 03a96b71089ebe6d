"""Vim-Ti, Cascade Mask R-CNN on a simple feature pyramid, large-scale jitter, 184,375 iterations of 64 images.

Published: box AP 45.7, mask AP 39.2. Source: the paper (arXiv:2401.09417). The authors train with detectron2 and mixed
precision (--amp); their code drops the class token, here it stays, as in pretraining.
"""

_base_ = [
    "../../_base_/models/cascade_mask_rcnn_simple_fpn.py",
    "../../_base_/datasets/coco_large_jitter.py",
    "../../_base_/schedules/coco_large_jitter.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="vim_tiny", pretrained=True, out_indices=(23,), out_norm=None, drop_path_rate=0.1),
    neck=dict(in_channels=192),
)
optim_wrapper = dict(constructor="LayerDecayOptimWrapperConstructor", paramwise_cfg=dict(layer_decay=0.837))
