"""MobileMamba-B4, DeepLabv3 (arXiv:1706.05587), 80,000 iterations.

Published: mIoU 36.6. Source: the authors' README (https://github.com/lewandofskee/MobileMamba).
23.0 M parameters with mmseg's head in 256 channels; the authors state 23.4 M.
"""

_base_ = "pspnet_mobilemamba_b4_80k_ade20k-512x512.py"
model = dict(
    decode_head=dict(
        _delete_=True,
        type="ASPPHead",
        in_channels=448,
        in_index=-1,
        channels=256,
        dilations=(1, 12, 24, 36),
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    )
)
