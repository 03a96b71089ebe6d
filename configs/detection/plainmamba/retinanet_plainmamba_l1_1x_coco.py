"""PlainMamba-L1, RetinaNet, 12 epochs.

Published: box AP 41.7. Source: the authors' README
(https://github.com/ChenhongyiYang/PlainMamba). The authors put a ViT-Adapter around the backbone; the simple feature
pyramid that stands in here has other parameters: their detectors' weights do not load, and results may differ.
"""

_base_ = [
    "../../_base_/models/retinanet.py",
    "../../_base_/datasets/coco_boxes.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="plainmamba_l1", pretrained=True, out_indices=(23,), out_norm=None, drop_path_rate=0.1),
    neck=[
        dict(type="SimpleFPN", in_channels=192, out_channels=256, num_outs=4),
        dict(
            type="FPN",
            in_channels=[256] * 4,
            out_channels=256,
            start_level=1,
            add_extra_convs="on_output",
            num_outs=5,
            norm_cfg=dict(type="SyncBN", requires_grad=True),
        ),
    ],
)
optim_wrapper = dict(clip_grad=dict(max_norm=35, norm_type=2))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
sync_bn = "torch"
