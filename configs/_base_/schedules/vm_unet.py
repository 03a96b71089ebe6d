"""VM-UNet's training: AdamW, a cosine of 50 epochs down and 50 up; a config gives the epochs."""

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=300, val_interval=10)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-2))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=50, eta_min=1e-5, by_epoch=True, begin=0, end=300)]
