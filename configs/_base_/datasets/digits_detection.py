"""Scenes of handwritten digits with boxes and masks: tools/prepare_digits.py --scenes --output work/digit_scenes."""

_root = "work/digit_scenes/"
_classes = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
_meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
_dataset = dict(type="CocoDataset", data_root=_root, metainfo=dict(classes=_classes))
_test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale_factor=1.0),  # notes the factor, by which mmdet scales boxes and masks back
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=_meta),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        _dataset,
        ann_file="instances_train.json",
        data_prefix=dict(img="images/train/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackDetInputs", meta_keys=_meta),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        _dataset,
        ann_file="instances_validation.json",
        data_prefix=dict(img="images/validation/"),
        test_mode=True,
        pipeline=_test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file=_root + "instances_validation.json", metric=["bbox", "segm"])
test_evaluator = val_evaluator
