"""An undivided network of `visionssm.segmentation`; a config gives the backbone's name and the head's classes."""

_base_ = ["../segmentation_runtime.py"]
model = dict(
    type="VisionSSMSegmentor",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,
    ),
    backbone=dict(pretrained=False),
    decode_head=dict(),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
custom_imports = dict(
    imports=["visionssm.openmmlab", "visionssm.openmmlab.segmentor", "visionssm.openmmlab.medical"],
    allow_failed_imports=False,
)
