"""MSVMamba-T, UPerNet, 160,000 iterations.

Published: mIoU 47.8. Source: the authors' README (https://github.com/YuHengsss/MSVMamba).
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "upernet_msvmamba_micro_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="msvmamba_tiny", pretrained="weights/msvmamba_tiny.pth", drop_path_rate=0.2),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
