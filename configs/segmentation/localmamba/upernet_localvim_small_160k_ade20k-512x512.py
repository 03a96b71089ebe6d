"""LocalVim-S, UPerNet on four blocks of one stride, 160,000 iterations.

Published: mIoU 46.4, with several scales 47.5. Source: the paper (arXiv:2403.09338, table 4);
the authors' repository leaves its result columns empty and publishes no weights of detectors and segmenters.
The authors switch to LayerNorm in the blocks here, started from the weights of the RMS norms; this keeps the RMS norms.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "upernet_localvim_tiny_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="localvim_small", pretrained="weights/local_vim_small.ckpt"),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
