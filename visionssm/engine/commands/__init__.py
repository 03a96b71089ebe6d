"""The command lines of tools/train.py, validate.py, predict.py and benchmark.py."""
