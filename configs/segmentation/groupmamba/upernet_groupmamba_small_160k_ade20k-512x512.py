"""GroupMamba-S, UPerNet, 160,000 iterations.

A recipe of this project, not of the authors, who publish no code for dense prediction; nothing was trained with it.
Settings are those of VMamba.
The classifier's weights have no direct address: put the authors' file where `pretrained` says.
"""

_base_ = "upernet_groupmamba_tiny_160k_ade20k-512x512.py"
model = dict(
    backbone=dict(name="groupmamba_small", pretrained="weights/groupmamba_small.pth", drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 348, 512]),
)
