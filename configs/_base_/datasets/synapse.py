"""Abdominal CT as TransUNet prepares it: data/synapse/{train,val}_npz/*.npz, slices with `image` and `label`.

A tiny set to try it: tools/prepare_digits.py --scenes --layout synapse --output data/synapse
"""

_root = "data/synapse"
_organs = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
_dataset = dict(
    type="BaseSegDataset",
    data_root=_root,
    metainfo=dict(classes=("background", *_organs)),
    img_suffix=".npz",
    seg_map_suffix=".npz",
)
_meta = ("img_path", "ori_shape", "img_shape", "pad_shape", "scale_factor", "flip", "flip_direction")
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        _dataset,
        data_prefix=dict(img_path="train_npz", seg_map_path="train_npz"),
        pipeline=[
            dict(type="LoadSlice"),
            dict(type="LoadSliceLabels"),
            dict(type="Resize", scale=(224, 224)),
            dict(type="RandomFlip", prob=0.5, direction=["horizontal", "vertical"]),
            dict(type="RandomRotate", prob=0.5, degree=20, pad_val=0, seg_pad_val=0),
            dict(type="PackSegInputs", meta_keys=_meta),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        _dataset,
        data_prefix=dict(img_path="val_npz", seg_map_path="val_npz"),
        pipeline=[
            dict(type="LoadSlice"),
            dict(type="Resize", scale=(224, 224)),
            dict(type="LoadSliceLabels"),  # of the slice's own size, to which the logits are brought
            dict(type="PackSegInputs", meta_keys=_meta),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU", "mDice"])
test_evaluator = val_evaluator
