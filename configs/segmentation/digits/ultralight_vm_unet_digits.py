"""Which pixel belongs to which handwritten digit: UltraLight VM-UNet (arXiv:2403.20035), twice as wide as published.

A recipe of this project; minutes on a CPU, from the beginning. Any other network of `visionssm.segmentation` comes by
another `name`.
"""

_base_ = [
    "../../_base_/models/whole_network.py",
    "../../_base_/datasets/digits_segmentation.py",
]
model = dict(
    backbone=dict(name="ultralight_vm_unet", dims=(16, 24, 32, 64, 96, 128)),
    decode_head=dict(
        num_classes=11,
        loss_decode=[
            # nine tenths of the pixels are background: it counts less, and digits are judged by their overlap too
            dict(type="CrossEntropyLoss", use_sigmoid=False, class_weight=[0.2] + [1.0] * 10),
            dict(type="DiceLoss", use_sigmoid=False, ignore_index=0),
        ],
    ),
)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="RandomCrop", crop_size=(96, 112)),
            dict(type="PackSegInputs"),
        ]
    )
)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=1200, val_interval=1200)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=5.0, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=100, end=1200),
]
default_hooks = dict(checkpoint=dict(interval=1200, max_keep_ckpts=2), visualization=dict(draw=True, interval=10))
randomness = dict(seed=0)
