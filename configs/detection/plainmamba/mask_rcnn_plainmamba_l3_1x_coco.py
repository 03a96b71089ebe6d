"""PlainMamba-L3, Mask R-CNN, 12 epochs.

Published: box AP 46.8, mask AP 41.2. Source: the authors' README
(https://github.com/ChenhongyiYang/PlainMamba). The authors put a ViT-Adapter around the backbone; the simple feature
pyramid that stands in here has other parameters: their detectors' weights do not load, and results may differ.
"""

_base_ = "mask_rcnn_plainmamba_l1_1x_coco.py"
model = dict(backbone=dict(name="plainmamba_l3", out_indices=(35,), drop_path_rate=0.3), neck=dict(in_channels=448))
