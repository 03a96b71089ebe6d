"""LocalVim-S, Mask R-CNN on a simple feature pyramid, large-scale jitter, 184,375 iterations.

No result is published. The authors' layer decay of 0.7 reaches only the embeddings (their rule looks for blocks under
another name), at 0.7 ** 13 of the rate; so it does here. They switch to LayerNorm in the blocks; this keeps RMS norms.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "mask_rcnn_localvim_tiny_large_jitter_coco.py"
model = dict(
    backbone=dict(name="localvim_small", pretrained="weights/local_vim_small.ckpt"), neck=dict(in_channels=384)
)
