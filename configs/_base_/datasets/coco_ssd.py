"""COCO 2017 for single-shot detectors: images squeezed to 320 x 320, SSD's augmentation (arXiv:1512.02325)."""

_base_ = "coco_boxes.py"
_meta = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
_root = "data/coco/"
train_dataloader = dict(
    batch_size=24,
    num_workers=4,
    batch_sampler=None,
    dataset=dict(
        _delete_=True,
        type="RepeatDataset",
        times=5,
        dataset=dict(
            type="CocoDataset",
            data_root=_root,
            ann_file="annotations/instances_train2017.json",
            data_prefix=dict(img="train2017/"),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=[
                dict(type="LoadImageFromFile"),
                dict(type="LoadAnnotations", with_bbox=True),
                dict(type="Expand", mean=[123.675, 116.28, 103.53], to_rgb=True, ratio_range=(1, 4)),
                dict(type="MinIoURandomCrop", min_ious=(0.1, 0.3, 0.5, 0.7, 0.9), min_crop_size=0.3),
                dict(type="Resize", scale=(320, 320), keep_ratio=False),
                dict(type="RandomFlip", prob=0.5),
                dict(
                    type="PhotoMetricDistortion",
                    brightness_delta=32,
                    contrast_range=(0.5, 1.5),
                    saturation_range=(0.5, 1.5),
                    hue_delta=18,
                ),
                dict(type="PackDetInputs"),
            ],
        ),
    ),
)
_test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(320, 320), keep_ratio=False),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=_meta),
]
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=_test_pipeline))
test_dataloader = dict(batch_size=8, dataset=dict(pipeline=_test_pipeline))
