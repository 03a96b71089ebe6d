"""LocalVim-T, Mask R-CNN on a simple feature pyramid, large-scale jitter, 184,375 iterations.

Published: box AP 45.3, mask AP 39.9. Source: the paper (arXiv:2403.09338, table 6), which calls the detector a Cascade
Mask R-CNN; the authors' configuration, which this follows, is a Mask R-CNN. Their layer decay of 0.7 reaches only the
embeddings (their rule looks for blocks under another name), at 0.7 ** 13 of the rate; so it does here. They switch to
LayerNorm in the blocks; this keeps RMS norms.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco_large_jitter.py",
    "../../_base_/schedules/coco_large_jitter.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(name="localvim_tiny", pretrained=True, feature_stream=False, out_indices=(19,), drop_path_rate=0.1),
    neck=dict(_delete_=True, type="SimpleFPN", in_channels=192, out_channels=256, num_outs=5),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=dict(type="LN2d")),
        mask_head=dict(norm_cfg=dict(type="LN2d")),
    ),
)
_embedding = dict(lr_mult=0.7**13, decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0, custom_keys=dict(pos_embed=_embedding, patch_embed=dict(lr_mult=0.7**13))),
    clip_grad=dict(max_norm=35, norm_type=2),
)
