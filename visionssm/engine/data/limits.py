"""Limits of images and names of decoders, apart from what reads them, so that a help need not wait for it."""

DECODERS = ("pillow", "torchvision")
MAX_PIXELS = 178_956_970  # where Pillow itself speaks of a decompression bomb
