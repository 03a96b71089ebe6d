"""COCO 2017 as in coco.py, for detectors that give boxes alone."""

_base_ = "coco.py"
val_evaluator = dict(metric=["bbox"])
test_evaluator = dict(metric=["bbox"])
