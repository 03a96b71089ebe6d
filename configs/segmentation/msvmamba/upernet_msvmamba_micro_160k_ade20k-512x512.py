"""MSVMamba-M, UPerNet, 160,000 iterations.

Published: mIoU 45.1, with several scales 45.4. Source: the authors' README (https://github.com/YuHengsss/MSVMamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k.py",
    "../../_base_/schedules/ade20k_160k.py",
    "../../_base_/segmentation_runtime.py",
]
model = dict(
    backbone=dict(name="msvmamba_micro", pretrained="weights/msvmamba_micro.pth", drop_path_rate=0.1),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
