"""The selective scan: one public function, three implementations of one meaning."""

from . import flops as _flops  # noqa: F401  registers the formulas
from .operator import available_backends, selective_scan

__all__ = ["available_backends", "selective_scan"]
