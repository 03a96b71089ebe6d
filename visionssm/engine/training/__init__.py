"""Training: models, losses and optimizers from options, the loop, checkpoints and the run folder."""
