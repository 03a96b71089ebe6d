"""PlainMamba-L2, RetinaNet, 12 epochs.

Published: box AP 43.9. Source: the authors' README
(https://github.com/ChenhongyiYang/PlainMamba). The authors put a ViT-Adapter around the backbone; the simple feature
pyramid that stands in here has other parameters: their detectors' weights do not load, and results may differ.
"""

_base_ = "retinanet_plainmamba_l1_1x_coco.py"
model = dict(
    backbone=dict(name="plainmamba_l2", drop_path_rate=0.2),
    neck=[
        dict(type="SimpleFPN", in_channels=384, out_channels=256, num_outs=4),
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
