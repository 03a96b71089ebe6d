"""Data sets of real images without a download: scikit-learn's handwritten digits."""
