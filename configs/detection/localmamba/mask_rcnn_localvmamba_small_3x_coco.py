"""LocalVMamba-S, Mask R-CNN, 36 epochs, multi-scale; the authors train with mixed precision (--amp).

Published: box AP 49.9, mask AP 44.1. Source: the paper (arXiv:2403.09338, table 3);
the authors' repository leaves its result columns empty and publishes no weights of detectors and segmenters.
"""

_base_ = "mask_rcnn_localvmamba_tiny_3x_coco.py"
model = dict(backbone=dict(name="localvmamba_small", pretrained=True))
