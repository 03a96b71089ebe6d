"""PlainMamba-L2, UPerNet on four blocks of one stride, 160,000 iterations.

Published: mIoU 46.8. Source: the authors' README
(https://github.com/ChenhongyiYang/PlainMamba).
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
_norms = ("layernorm", "layernorm", "layernorm", "model")
model = dict(
    backbone=dict(
        name="plainmamba_l2",
        pretrained=True,
        out_indices=(5, 11, 17, 23),
        out_norm=_norms,
        out_norm_eps=1e-6,
        drop_path_rate=0.2,
    ),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384, in_index=3),
)
_test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2048, 512), keep_ratio=True),
    dict(type="ResizeToMultiple", size_divisor=32),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
val_dataloader = dict(dataset=dict(pipeline=_test_pipeline))
test_dataloader = val_dataloader
sync_bn = "torch"
