"""Classification training and evaluation: a thin layer over timm's tasks, data, optimizers and schedulers."""
