"""VM-UNet on slices of abdominal CT, as arXiv:2402.02491 trains it.

Published: 81.08 DSC, by the paper, a mean over volumes; mDice here is of all pixels of all slices. The encoder starts
from ImageNet's weights there: --cfg-options model.backbone.encoder_weights=FILE, a file of VMamba-S of the first
generation.
"""

_base_ = [
    "../../_base_/models/whole_network.py",
    "../../_base_/datasets/synapse.py",
    "../../_base_/schedules/vm_unet.py",
]
model = dict(
    data_preprocessor=dict(mean=None, std=None, bgr_to_rgb=False),  # slices have one channel of values from 0 to 1
    backbone=dict(name="vm_unet", in_chans=1),
    decode_head=dict(
        num_classes=9,
        loss_decode=[
            dict(type="CrossEntropyLoss", use_sigmoid=False),
            dict(type="DiceLoss", use_sigmoid=False, ignore_index=None),
        ],
    ),
)
default_hooks = dict(logger=dict(log_metric_by_epoch=True), checkpoint=dict(by_epoch=True, interval=10))
log_processor = dict(by_epoch=True)
