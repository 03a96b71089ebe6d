"""VM-UNet on skin lesions, as arXiv:2402.02491 trains it; two classes with a softmax where it has one with a sigmoid.

Published: ISIC 2018 81.35 mIoU, of the lesion alone, by the paper. The encoder starts from ImageNet's weights there:
--cfg-options model.backbone.encoder_weights=FILE, a file of VMamba-S of the first generation.
"""

_base_ = [
    "../../_base_/models/whole_network.py",
    "../../_base_/datasets/isic.py",
    "../../_base_/schedules/vm_unet.py",
]
model = dict(
    backbone=dict(name="vm_unet"),
    decode_head=dict(
        num_classes=2,
        loss_decode=[
            dict(type="CrossEntropyLoss", use_sigmoid=False),
            dict(type="DiceLoss", use_sigmoid=False, ignore_index=0),
        ],
    ),
)
train_dataloader = dict(batch_size=32)
default_hooks = dict(logger=dict(log_metric_by_epoch=True), checkpoint=dict(by_epoch=True, interval=10))
log_processor = dict(by_epoch=True)
