"""UltraLight VM-UNet on skin lesions, as arXiv:2403.20035 trains it.

Published: ISIC 2017 0.9091 DSC, by the authors' README.
"""

_base_ = ["./vm_unet_isic-256x256.py"]
model = dict(backbone=dict(name="ultralight_vm_unet"))
train_dataloader = dict(batch_size=8)
train_cfg = dict(max_epochs=250)
param_scheduler = [dict(type="CosineAnnealingLR", T_max=50, eta_min=1e-5, by_epoch=True, begin=0, end=250)]
