"""Vim-S, UPerNet, 60,000 iterations with 32 images per step.

Published: mIoU 44.9. Source: the paper (arXiv:2401.09417). The authors' layer decay of 0.95 reaches only the
embeddings (their rule looks for blocks under another name), at 0.95 ** 25 of the rate; so it does here. Their released
segmentation code drops the class token; here it stays, as in pretraining, and its features are not used.
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(name="vim_small", pretrained=True, feature_stream=True, out_indices=(5, 11, 17, 23), out_norm=None),
    neck=dict(type="Feature2Pyramid", embed_dim=384, rescales=[4, 2, 1, 0.5]),
    decode_head=dict(in_channels=[384] * 4, channels=384),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)),
)
train_dataloader = dict(batch_size=8)
_embedding = dict(lr_mult=0.95**25, decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(
        _delete_=True,
        flat_decay_mult=0.0,
        custom_keys=dict(pos_embed=_embedding, cls_token=_embedding, patch_embed=dict(lr_mult=0.95**25)),
    ),
)
train_cfg = dict(max_iters=60000, val_interval=6000)
default_hooks = dict(checkpoint=dict(interval=6000))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=60000),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
