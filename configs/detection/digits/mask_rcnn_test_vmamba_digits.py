"""Boxes and masks of handwritten digits: a small Mask R-CNN on the pico VMamba that `make demo` trained.

A recipe of this project; minutes on a CPU. `visionssm.openmmlab` gives any other model by another `name`.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/digits_detection.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="test_vmamba", pretrained="work/demo/last.pth.tar"),
    neck=dict(in_channels=[20, 32, 48, 64], out_channels=48, num_outs=4),
    rpn_head=dict(in_channels=48, feat_channels=48, anchor_generator=dict(scales=[6], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=48, finest_scale=28),
        bbox_head=dict(in_channels=48, fc_out_channels=128, num_classes=10),
        mask_roi_extractor=dict(out_channels=48, finest_scale=28),
        mask_head=dict(num_convs=2, in_channels=48, conv_out_channels=48, num_classes=10),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)), rpn_proposal=dict(nms_pre=200, max_per_img=64), rcnn=dict(sampler=dict(num=32))
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=64), rcnn=dict(max_per_img=20)),
)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=1500, val_interval=500)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    constructor="LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay=0.9),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=100, end=1500),
]
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=500, max_keep_ckpts=2), visualization=dict(draw=True, interval=10)
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
