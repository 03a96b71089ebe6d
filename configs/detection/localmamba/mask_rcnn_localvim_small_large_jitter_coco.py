"""LocalVim-S, Mask R-CNN on a simple feature pyramid, large-scale jitter, 184,375 iterations.

No result is published. The authors' layer decay of 0.7 reaches only the embeddings (their rule looks for blocks under
another name), at 0.7 ** 13 of the rate; so it does here. They switch to LayerNorm in the blocks; this keeps RMS norms.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/mask_rcnn.py",
    "../../_base_/datasets/coco_large_jitter.py",
    "../../_base_/schedules/coco_large_jitter.py",
    "../../_base_/detection_runtime.py",
]
model = dict(
    backbone=dict(
        name="localvim_small",
        pretrained="weights/local_vim_small.ckpt",
        feature_stream=False,
        out_indices=(19,),
        drop_path_rate=0.1,
    ),
    neck=dict(_delete_=True, type="SimpleFPN", in_channels=384, out_channels=256, num_outs=5),
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
