"""LocalVMamba-S, Mask R-CNN, 12 epochs; the authors train with mixed precision (--amp).

Published: box AP 48.4, mask AP 43.2. Source: the paper (arXiv:2403.09338, table 3);
the authors' repository leaves its result columns empty and publishes no weights of detectors and segmenters.
"""

_base_ = "mask_rcnn_localvmamba_tiny_1x_coco.py"
model = dict(backbone=dict(name="localvmamba_small", pretrained=True))
