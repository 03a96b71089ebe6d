"""Trained classifiers: read back, evaluated, applied to image files."""
