"""Which pixel belongs to which handwritten digit: UPerNet on the pico VMamba that `make demo` trained.

A recipe of this project; minutes on a CPU. `visionssm.openmmlab` gives any other model by another `name`.
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/digits_segmentation.py",
    "../../_base_/segmentation_runtime.py",
]
_norm = dict(type="BN", requires_grad=True)
# nine tenths of the pixels are background: it counts less, and digits are judged by their overlap too
_pixels = dict(type="CrossEntropyLoss", use_sigmoid=False, class_weight=[0.2] + [1.0] * 10)
_overlap = dict(type="DiceLoss", use_sigmoid=False, ignore_index=0)
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    backbone=dict(name="test_vmamba", pretrained="work/demo/last.pth.tar"),
    decode_head=dict(
        in_channels=[20, 32, 48, 64],
        channels=64,
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=[dict(_pixels, loss_weight=1.0), dict(_overlap, loss_weight=1.0)],
    ),
    auxiliary_head=dict(
        in_channels=48,
        channels=64,
        num_classes=11,
        norm_cfg=_norm,
        loss_decode=[dict(_pixels, loss_weight=0.4), dict(_overlap, loss_weight=0.4)],
    ),
)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=2400, val_interval=800)
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
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=100, end=2400),
]
default_hooks = dict(checkpoint=dict(interval=800, max_keep_ckpts=2), visualization=dict(draw=True, interval=10))
randomness = dict(seed=0)
