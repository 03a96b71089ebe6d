"""LocalVMamba-S, UPerNet, 160,000 iterations.

Published: mIoU 50.0, with several scales 51.0. Source: the paper (arXiv:2403.09338, table 4);
the authors' repository leaves its result columns empty and publishes no weights of detectors and segmenters.
"""

_base_ = "upernet_localvmamba_tiny_160k_ade20k-512x512.py"
model = dict(backbone=dict(name="localvmamba_small", pretrained=True, drop_path_rate=0.2))
