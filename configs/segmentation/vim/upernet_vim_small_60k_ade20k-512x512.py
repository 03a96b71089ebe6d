"""Vim-S, UPerNet, 60,000 iterations with 32 images per step.

Published: mIoU 44.9. Source: the paper (arXiv:2401.09417). The authors' layer decay of 0.95 reaches only the
embeddings (their rule looks for blocks under another name), at 0.95 ** 25 of the rate; so it does here. Their released
segmentation code drops the class token; here it stays, as in pretraining, and its features are not used.
"""

_base_ = "upernet_vim_tiny_60k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="vim_small", feature_stream=True),
    neck=dict(embed_dim=384),
    decode_head=dict(channels=384, in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
_rate = dict(lr_mult=0.95**25)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=dict(pos_embed=_rate, cls_token=_rate, patch_embed=_rate)),
)
