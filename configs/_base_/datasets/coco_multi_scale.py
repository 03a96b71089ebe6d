"""COCO at the scales of the 3x schedules: shorter sides of 480 to 800, half of the time after a crop."""

_base_ = ["coco.py"]
_scales = [(side, 1333) for side in range(480, 801, 32)]
_resize = dict(type="RandomChoiceResize", scales=_scales, keep_ratio=True)
_crop = dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True)
_resize_first = dict(type="RandomChoiceResize", scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="RandomFlip", prob=0.5),
            dict(type="RandomChoice", transforms=[[_resize], [_resize_first, _crop, _resize]]),
            dict(type="PackDetInputs"),
        ]
    )
)
