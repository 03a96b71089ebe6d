"""EfficientViM-M4, Semantic FPN, 40,000 iterations.

Published: mIoU 41.3. Source: the authors' README (https://github.com/mlvlab/EfficientViM).
The maps have strides 16, 32 and 64; a fourth is the third at half its resolution. The head is told strides 4 to 32 as
in the original: only their ratios count. 32 images per step; batch norms of the backbone stay in evaluation mode.
"""

_base_ = [
    "../../_base_/models/semantic_fpn.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(name="efficientvim_m4.e450_in1k", pretrained=True, out_norm=None, norm_eval=True),
    neck=dict(in_channels=[224, 320, 512]),
)
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_iters=40000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=1e-4), paramwise_cfg=dict(_delete_=True))
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-6, by_epoch=False, begin=0, end=40000)]
auto_scale_lr = dict(base_batch_size=32)
