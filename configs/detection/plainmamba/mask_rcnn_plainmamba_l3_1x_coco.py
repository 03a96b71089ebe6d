"""PlainMamba-L3, Mask R-CNN, 12 epochs.

Published: box AP 46.8, mask AP 41.2. Source: the authors' README
(https://github.com/ChenhongyiYang/PlainMamba). The authors put a ViT-Adapter around the backbone; the simple feature
pyramid that stands in here has other parameters: their detectors' weights do not load, and results may differ.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco.py",
    "../../_base_/schedules/coco_1x.py",
    "../../_base_/detection_runtime.py",
]
_norm = dict(type="SyncBN", requires_grad=True)
model = dict(
    backbone=dict(name="plainmamba_l3", pretrained=True, out_indices=(35,), out_norm=None, drop_path_rate=0.3),
    neck=dict(_delete_=True, type="SimpleFPN", in_channels=448, out_channels=256, num_outs=5),
    roi_head=dict(bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=_norm)),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
sync_bn = "torch"
