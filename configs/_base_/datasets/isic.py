"""Skin lesions in the ISIC archive's names: data/isic/{train,val}/{images/*.jpg,masks/*_segmentation.png}.

A tiny set to try it: tools/prepare_digits.py --scenes --layout isic --output data/isic
"""

_root = "data/isic"
_dataset = dict(
    type="BaseSegDataset",
    data_root=_root,
    metainfo=dict(classes=("background", "lesion")),
    img_suffix=".jpg",
    seg_map_suffix="_segmentation.png",
)
_test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(256, 256)),
    dict(type="LoadAnnotations"),
    dict(type="BinaryLabels"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        _dataset,
        data_prefix=dict(img_path="train/images", seg_map_path="train/masks"),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations"),
            dict(type="BinaryLabels"),
            dict(type="Resize", scale=(256, 256)),
            dict(type="RandomFlip", prob=0.5, direction="horizontal"),
            dict(type="RandomFlip", prob=0.5, direction="vertical"),
            dict(type="RandomRotate", prob=0.5, degree=180, pad_val=0, seg_pad_val=0),
            dict(type="PackSegInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(_dataset, data_prefix=dict(img_path="val/images", seg_map_path="val/masks"), pipeline=_test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU", "mDice"])
test_evaluator = val_evaluator
